"""Layers and cells on the device: moved, swapped, in every form of input, under autocast."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import error
from on_device import DEVICE, MATHS, paths
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import CELLS, LAYERS, every_module, input_of, states_of, tensors, twins
from written_cells import ZOO

import rnnext

KIND = torch.device(DEVICE).type
LENGTHS = [2, 5, 1, 4]
T, N, C, H = 5, 4, 3, 33


def run(module: Any, *inputs: Any, **options: Any) -> list[Tensor]:
    """Results, and the gradients of all inputs and weights."""
    flat = [t.detach().requires_grad_() for t in tensors(inputs)]
    x, *states = flat
    hx = states[0] if len(states) == 1 else tuple(states)
    results = tensors(module(x, hx, **options) if states else module(x, **options))
    loss = torch.stack([t.double().sin().sum() for t in results]).sum()
    return [*results, *torch.autograd.grad(loss, [*flat, *module.parameters()])]


def close(results: list[Tensor], expected: list[Tensor], bound: float = 1e-10) -> None:
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert error(a, b) < bound, k


@every_module
def test_a_module_computes_where_it_is_moved(name: str) -> None:
    ours, theirs = twins(name)
    x, hx = input_of(name), states_of(name)
    there = torch.utils._pytree.tree_map(lambda t: t.to(DEVICE), (x, hx))
    expected = run(theirs, x, hx)
    moved = ours.to(DEVICE)
    assert moved is ours
    assert {p.device.type for p in moved.parameters()} == {KIND}
    results = run(moved, *there)
    assert {t.device.type for t in results} == {KIND}
    close(results, expected)
    close(run(moved, there[0]), run(theirs, x))
    close(run(moved.cpu(), x, hx), expected)


def stacked(name: str, **options: Any) -> tuple[Any, Any]:
    ours, theirs = twins(name, C, H, 2, bidirectional=True, **options)
    return ours.to(DEVICE), theirs


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_form_of_input(name: str, batch_first: bool) -> None:
    ours, theirs = stacked(name, batch_first=batch_first)
    x = torch.randn((N, T, C) if batch_first else (T, N, C), dtype=torch.float64)
    close(run(ours, x.to(DEVICE)), run(theirs, x))
    close(run(ours, x[0].to(DEVICE)), run(theirs, x[0]))

    # Packed; and padded with lengths on either device, where padding is not read.
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first, enforce_sorted=False)
    y, states = theirs(packed)
    expected = [pad_packed_sequence(y, batch_first, total_length=T)[0], *tensors(states)]
    close(tensors(ours(packed.to(DEVICE))), [y.data, *tensors(states)])
    padding = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)
    x = x.masked_fill((padding.T if batch_first else padding).unsqueeze(-1), float("nan"))
    for lengths in (LENGTHS, torch.tensor(LENGTHS), torch.tensor(LENGTHS, device=DEVICE)):
        close(tensors(ours(x.to(DEVICE), lengths=lengths)), expected)


def test_projections() -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(C, H, 2, bidirectional=True, proj_size=7, dtype=torch.float64)
    ours = rnnext.swap(copy.deepcopy(theirs)).to(DEVICE)
    x = torch.randn(T, N, C, dtype=torch.float64)
    close(run(ours, x.to(DEVICE)), run(theirs, x))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("math", ["float32", "bfloat16", "float16"])
@paths
def test_swap_in_place_and_back(name: str, math: str, path: str) -> None:
    """A layer of torch.nn on the device, which is cuDNN's there, in the dtype that it has."""
    dtype, bound = MATHS[math].dtype, MATHS[math].bound
    torch.manual_seed(0)
    model = nn.Sequential(getattr(nn, name)(C, 200)).to(DEVICE, dtype)
    before = {key: (p, p.detach().clone()) for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(T, 20, C).to(DEVICE, dtype)
    wide = copy.deepcopy(model).double()

    def outputs() -> list[Tensor]:
        return tensors(model(x))

    exact = [t.detach() for t in tensors(wide(x.double()))]
    close(outputs(), exact, 10 * bound)
    assert rnnext.swap(model) is model
    close(outputs(), exact, bound)
    assert all(p is before[key][0] for key, p in model.named_parameters())
    sum(t.float().square().sum() for t in outputs()).backward()
    optimizer.step()
    assert all(not torch.equal(p, value) for p, value in before.values())
    changed = [t.detach() for t in tensors(copy.deepcopy(model).double()(x.double()))]
    close(outputs(), changed, bound)
    assert type(rnnext.unswap(model)[0]) is getattr(nn, name)
    close(outputs(), changed, 10 * bound)


@pytest.mark.parametrize("name", [*CELLS])
def test_cells_step_by_hand_as_the_layer_does(name: str) -> None:
    cell, _ = twins(name, C, H)
    layer = getattr(rnnext, name.removesuffix("Cell"))(C, H, dtype=torch.float64)
    for target, source in zip(layer.parameters(), cell.parameters(), strict=True):
        target.data = source.data
    x, states, outputs = torch.randn(T, N, C, dtype=torch.float64).to(DEVICE), None, []
    for row in x:
        states = cell.to(DEVICE)(row, states)
        outputs.append(states[0] if isinstance(states, tuple) else states)
    close([torch.stack(outputs)], [layer.to(DEVICE)(x)[0]])


AUTOCAST: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: rnnext.LSTM(C, H, 2, bidirectional=True),
    "GRU": lambda: rnnext.GRU(C, H),
    "RNN": lambda: rnnext.RNN(C, H),
    "LightGRU": lambda: ZOO["LightGRU"](C, H),
    "LSTMCell": lambda: rnnext.LSTMCell(C, H),
    "GRUCell": lambda: rnnext.GRUCell(C, H),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_gives_its_dtype_whatever_is_given(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = AUTOCAST[name]().to(DEVICE)
    x = torch.randn((N, C) if "Cell" in name else (T, N, C)).to(DEVICE)
    bound = 2 * MATHS[str(dtype).removeprefix("torch.")].bound
    low = (torch.float32, torch.bfloat16, torch.float16)
    for of_weights, of_x in itertools.product(low, low):
        cast, given = copy.deepcopy(module).to(of_weights), x.to(of_x)
        exact = run(copy.deepcopy(cast).double(), given.double())
        with torch.autocast(KIND, dtype):
            results = tensors(cast(given))
        assert {t.dtype for t in results} == {dtype}
        close(results, exact[: len(results)], bound)
        leaves = [*cast.parameters()]
        loss = torch.stack([t.double().sin().sum() for t in results]).sum()
        grads = torch.autograd.grad(loss, leaves)
        assert {g.dtype for g in grads} == {of_weights}
        if of_weights == torch.float32:
            close(list(grads), exact[len(results) + 1 :], 3 * bound)


def test_autocast_leaves_float64_and_other_devices_alone() -> None:
    layer, x = rnnext.GRU(C, H, dtype=torch.float64), torch.randn(T, N, C, dtype=torch.float64)
    for device, where in itertools.product(("cpu", DEVICE), ("cpu", KIND)):
        with torch.autocast(where, torch.bfloat16):
            assert layer.to(device)(x.to(device))[0].dtype == torch.float64


def test_a_model_learns() -> None:
    torch.manual_seed(0)
    layers = (rnnext.LSTM(C, 32), ZOO["LightGRU"](32, 17))
    model = nn.ModuleList([*layers, nn.Linear(17, 1)]).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x = torch.randn(T, N, C, device=DEVICE)
    target, losses = x.cumsum(0).mean(-1, keepdim=True), []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(KIND, torch.bfloat16):
            y = x
            for layer in layers:
                y, _ = layer(y)
            loss = nn.functional.mse_loss(model[2](y).float(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LightGRU"])
def test_dropout_and_noise_are_seeded_by_the_cpus_generator(name: str) -> None:
    """So a seed gives the same masks on every device."""
    torch.manual_seed(0)
    kind = ZOO[name] if name in ZOO and not hasattr(rnnext, name) else getattr(rnnext, name)
    layer = kind(C, H, 3, bidirectional=True, dropout=0.4).double()
    x, found = torch.randn(T, N, C, dtype=torch.float64), []
    for device in ("cpu", DEVICE):
        torch.manual_seed(7)
        found.append(run(layer.to(device), x.to(device)))
    close(found[1], found[0])
