"""The same bits for the same seed; torch's deterministic mode; forked processes.

The fixture poisoned_memory turns the mode on.
"""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from test_half import C, H, N, T, every_kind, make
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset
from twins import tensors
from written_cells import Everything, LightGRU, Noisy, Peephole, Zoneout

import rnnext

LAYERS: list[tuple[Any, dict[str, Any]]] = [
    (rnnext.LSTM, {}),
    (rnnext.LSTM, {"proj_size": 4}),
    (rnnext.GRU, {}),
    (rnnext.RNN, {}),
    (Peephole, {}),
    (Zoneout, {}),
    (Noisy, {}),
    (Everything, {"out_size": 5, "key_size": 3}),
]
every_layer = pytest.mark.parametrize(
    ("kind", "sizes"), LAYERS, ids=["-".join([k.__name__, *s]) for k, s in LAYERS]
)


def stack(kind: Any, sizes: dict[str, int], **options: Any) -> Any:
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3, **options}
    return make(kind, C, H, **sizes, **options)


FORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "padded": lambda layer, x: layer(x),
    "lengths": lambda layer, x: layer(x, lengths=[2, 3, 1, 3]),
    "packed": lambda layer, x: layer(
        pack_padded_sequence(x, torch.tensor([2, 3, 1, 3]), enforce_sorted=False)
    ),
    "unbatched": lambda layer, x: layer(x[:, 0]),
}
every_form = pytest.mark.parametrize("form", FORMS)


def bits(layer: Any, x: Tensor, form: str) -> list[Tensor]:
    """Results and gradients at one seed."""
    torch.manual_seed(4)
    results = tensors(FORMS[form](layer, x))
    loss = sum(t.square().sum() for t in results)
    leaves = [x, *layer.parameters()]
    return [*results, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


@every_layer
@every_form
def test_layers_in_deterministic_mode(
    kind: Any, sizes: dict[str, int], form: str, poisoned_memory: None
) -> None:
    layer, x = stack(kind, sizes), torch.randn(T, N, C, requires_grad=True)
    first = bits(layer, x, form)
    assert all(t.isfinite().all() for t in first)
    for _ in range(3):
        assert all(map(torch.equal, bits(layer, x, form), first))
    torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, bits(layer, x, form), first))


@every_layer
def test_large_layers_have_the_same_bits_again(kind: Any, sizes: dict[str, int]) -> None:
    """Several threads, time blocks and panels of packed weights."""
    torch.manual_seed(0)
    layer = kind(48, 130, 2, bidirectional=True, dropout=0.3, **sizes)
    x = torch.randn(40, 21, 48, requires_grad=True)
    torch.manual_seed(4)

    def run() -> list[Tensor]:
        torch.manual_seed(4)
        results = tensors(layer(x))
        return [*results, *torch.autograd.grad(results[0].sum(), [x, *layer.parameters()])]

    first = run()
    for _ in range(4):
        assert all(map(torch.equal, run(), first))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_and_cells_of_any_dtype(
    kind: Any, dtype: torch.dtype, poisoned_memory: None
) -> None:
    module = make(kind).to(dtype)
    x = torch.randn((N, C) if "Cell" in kind.__name__ else (T, N, C)).to(dtype).requires_grad_()
    found = []
    for autocast in (False, True, False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = tensors(module(x))
        loss = sum(t.float().square().sum() for t in results)
        grads = torch.autograd.grad(loss, [x, *module.parameters()], materialize_grads=True)
        found.append([*results, *grads])
    for a, b in (found[::2], found[1::2]):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("kind", [rnnext.LSTM, rnnext.GRU, LightGRU], ids=lambda k: k.__name__)
@every_form
def test_double_backward_and_forward_mode(kind: Any, form: str, poisoned_memory: None) -> None:
    layer, x = make(kind, bidirectional=True), torch.randn(T, N, C, requires_grad=True)
    v, found = torch.randn(T, N, C), []
    for _ in range(2):
        y = tensors(FORMS[form](layer, x))[0]
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        second = torch.autograd.grad(grad.square().sum(), [x, *layer.parameters()])
        found.append([grad, *second])
        if form == "padded":
            found[-1] += torch.func.jvp(lambda x: layer(x)[0], (x,), (v,))
    assert all(map(torch.equal, *found))
    assert all(t.isfinite().all() for t in found[0])


def test_another_seed_gives_other_values() -> None:
    for kind in (rnnext.LSTM, Zoneout):
        layer, x = stack(kind, {}), torch.randn(T, N, C)
        torch.manual_seed(0)
        first, second = layer(x)[0], layer(x)[0]
        assert not torch.equal(first, second)


class Encoded(Dataset):  # type: ignore[type-arg]
    """What an encoder makes of each item, in the worker process."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.manual_seed(index)
        # A backward pass can't follow one in the parent: some builds of torch refuse it.
        with torch.no_grad():
            return self.layer(torch.randn(T, C))[0]


@pytest.mark.parametrize("kind", [rnnext.LSTM, rnnext.GRU, LightGRU], ids=lambda k: k.__name__)
def test_layers_in_the_workers_of_a_data_loader(kind: Any) -> None:
    """They are forked after the layer has run on several threads here."""
    layer = make(kind, C, 64)
    layer(torch.randn(40, 32, C))[0].sum().backward()
    data = Encoded(layer)
    loader = DataLoader(
        data, batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    batches = list(loader)
    for k, (batch,) in enumerate(batches):
        torch.testing.assert_close(batch, data[k])


def test_a_cell_is_compiled_in_a_forked_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNEXT_CACHE", str(tmp_path))

    class Mine(rnnext.Recurrent):
        gates = ("a",)

        def step(a, h):  # type: ignore[no-untyped-def]
            return 0.75 * torch.tanh(a) + 0.25 * h

    child = get_context("fork").Process(target=make(Mine), args=(torch.zeros(T, N, C),))
    child.start()
    try:
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert len(list(tmp_path.glob("*/cell.so"))) == 1
