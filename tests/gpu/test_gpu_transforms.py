"""Second derivatives, torch.func, vmap and torch.compile on the device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import Case, error
from gpu_cases import TWICE
from on_device import DEVICE, data_for
from test_derivatives import equal, second, transformed
from test_vmap import WHICH
from test_vmap import check as check_vmap
from torch import Tensor
from torch.func import functional_call, grad, vmap
from twins import tensors
from written_cells import ZOO

import rnnext
from rnnext import ops, reference

some_cells = pytest.mark.parametrize("cell", TWICE)
DEEP = (
    Case(T=5, N=3, C=5, H=17, L=2, D=2, dropout=0.3),
    Case(T=4, N=2, C=5, H=330),
    Case(T=6, N=4, C=3, H=7, L=2, D=2, lengths=(6, 6, 3, 1), h0=False),
)


@some_cells
@pytest.mark.parametrize("case", DEEP, ids=str)
def test_second_derivatives_equal_the_references(
    cell: str, case: Case, poisoned_memory: None
) -> None:
    data = data_for(cell, case)
    expected = second(data.on("cpu"), reference.rnn, torch.float64)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        result = second(data, ops.rnn, dtype)
        for name in data.names:
            assert error(result[name], expected[name]) < bound, (dtype, name)


@some_cells
def test_transforms_of_torch_func(cell: str) -> None:
    data = data_for(cell, Case(T=3, N=2, C=3, H=5, L=2, D=2, dropout=0.3))
    equal(transformed(data, ops.rnn), transformed(data.on("cpu"), reference.rnn), 1e-10)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "LSTM_PROJ", "LightGRU"])
def test_vmap(cell: str, which: str) -> None:
    for case in (
        Case(T=4, N=2, C=3, H=5, L=2, D=2),
        Case(T=5, N=3, C=3, H=17, D=2, lengths=(5, 3, 3), h0=False, bias=False),
    ):
        check_vmap(data_for(cell, case), which)


def test_gradients_of_each_sample_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = rnnext.LSTM(5, 33, 2, device=DEVICE, dtype=torch.float64)
    x = torch.randn(4, 9, 5, dtype=torch.float64).to(DEVICE)
    params = dict(layer.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, params, (x,))[0].square().sum()

    found = vmap(grad(loss), (None, 0))(params, x)
    for k, sample in enumerate(x):
        expected = torch.autograd.grad(loss(params, sample), list(params.values()))
        for name, value in zip(params, expected, strict=True):
            assert error(found[name][k], value) < 1e-10, name


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LAYERS: dict[str, Any] = {
    "LSTM": lambda: rnnext.LSTM(6, 33, 2, bidirectional=True, dropout=0.5),
    "LSTM_PROJ": lambda: rnnext.LSTM(6, 33, proj_size=5, batch_first=True),
    "GRU": lambda: rnnext.GRU(6, 200, bias=False),
    "RNN": lambda: rnnext.RNN(6, 17, nonlinearity="relu"),
    "LightGRU": lambda: ZOO["LightGRU"](6, 33, 2),
    "Zoneout": lambda: ZOO["Zoneout"](6, 33),
}


def everything(module: Any, leaves: list[Tensor], x: Tensor, **options: Any) -> list[Tensor]:
    torch.manual_seed(5)
    x = x.detach().requires_grad_()
    outputs = tensors(module(x, **options))
    loss = torch.stack([o.float().sin().sum() for o in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, [x, *leaves])]


# One layer stands for all where the compiler is slow.
@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in LAYERS), ("LSTM", "inductor")]
)
def test_torch_compile_takes_a_layer_whole(
    name: str, backend: str, fresh_compiler: None, inductor_cache: None
) -> None:
    torch.manual_seed(0)
    # Inductor draws random numbers of its own, and so another seed of the dropout.
    layer = LAYERS[name]().to(DEVICE).train(backend != "inductor")
    leaves = [*layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for t, n in ((13, 7), (9, 12)):
        x = torch.randn(n, t, 6) if layer.batch_first else torch.randn(t, n, 6)
        for options in ({}, {"lengths": torch.randint(1, t + 1, (n,))}):
            given = x.to(DEVICE)
            results = [everything(m, leaves, given, **options) for m in (compiled, layer)]
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)


def test_torch_compile_under_autocast(fresh_compiler: None) -> None:
    torch.manual_seed(0)
    layer = rnnext.GRU(6, 33, device=DEVICE)
    leaves, x = [*layer.parameters()], torch.randn(9, 4, 6).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    kind = torch.device(DEVICE).type
    with torch.autocast(kind, torch.bfloat16):
        results = [everything(m, leaves, x) for m in (compiled, layer)]
    assert results[0][0].dtype == torch.bfloat16
    assert all(map(torch.equal, *results))
