"""Weights that are computed: parametrizations, the older weight_norm, pruning, weight-drop."""

# ruff: noqa: RUF012

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from twins import (
    CELLS,
    LAYERS,
    C,
    H,
    N,
    T,
    close,
    every_module,
    input_of,
    states_of,
    tensors,
    twins,
)
from written_cells import Peephole

import rnnext
from rnnext.codegen import build

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # None of a weight's layout in memory, nor any other that concerns the user.
    pytest.mark.filterwarnings("error", "ignore::DeprecationWarning"),
]


class Drop(nn.Module):
    """The DropConnect of Merity et al. 2018, as a parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return nn.functional.dropout(w, 0.5, self.training)


class WeightDrop(nn.Module):
    """The same, as it was written before there were parametrizations."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.raw = module._parameters.pop(name)

    def forward(self, *args: Any) -> Any:
        setattr(self.module, self.name, nn.functional.dropout(self.raw, 0.5, self.training))
        return self.module(*args)


def old(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrap(module: nn.Module, name: str) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(module, name)

    return wrap


def drop(module: nn.Module, name: str) -> nn.Module:
    return parametrize.register_parametrization(module, name, Drop())


def weight_and_drop(module: nn.Module, name: str) -> nn.Module:
    return drop(parametrizations.weight_norm(module, name), name)


MODERN: dict[str, Callable[..., Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "drop": drop,
    "weight norm and drop": weight_and_drop,
}
HOOKS: dict[str, Callable[..., Any]] = {
    "old weight norm": old(nn.utils.weight_norm),
    "old spectral norm": old(nn.utils.spectral_norm),
    "prune": lambda module, name: prune.l1_unstructured(module, name, 0.3),
    "structured prune": lambda module, name: prune.ln_structured(module, name, 0.5, n=2, dim=1),
}
WAYS = {**MODERN, **HOOKS}
every_way = pytest.mark.parametrize("way", WAYS)
modern_ways = pytest.mark.parametrize("way", MODERN)


def recurrent(name: str) -> str:
    return "weight_hh" if name in CELLS else "weight_hh_l0"


def make(name: str, way: str) -> tuple[Any, Any]:
    """Our module, its recurrent matrix computed, and torch.nn's as it was."""
    ours, theirs = twins(name)
    return WAYS[way](ours, recurrent(name)), theirs


@every_way
@every_module
def test_the_computed_weight_is_the_one_that_counts(name: str, way: str) -> None:
    (ours, theirs), weight = make(name, way), recurrent(name)
    x, hx = input_of(name).requires_grad_(), states_of(name)
    with parametrize.cached():
        results = tensors(ours(x, hx))
        used = getattr(ours, weight)
    plain = {key: value for key, value in ours.named_parameters() if key in theirs.state_dict()}
    assert weight not in plain
    expected = tensors(torch.func.functional_call(theirs, {**plain, weight: used}, (x, hx)))
    leaves, grads = [x, *ours.parameters()], []
    for found in (results, expected):
        loss = sum(t.square().sum() for t in found)
        grads.append(torch.autograd.grad(loss, leaves, retain_graph=True))
    for a, b in zip([*results, *grads[0]], [*expected, *grads[1]], strict=True):
        close(a, b)
    assert all(g.abs().sum() > 0 for g in grads[0])


@every_way
@every_module
def test_training_copies_state_dicts_and_removal(name: str, way: str) -> None:
    (ours, _), weight = make(name, way), recurrent(name)
    x, hx = input_of(name), states_of(name)
    before = {key: p.detach().clone() for key, p in ours.named_parameters()}
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = tensors(ours(x, hx))[0].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] or "drop" in way
    changed = [key for key, p in ours.named_parameters() if not torch.equal(p, before[key])]
    assert any(key.startswith((f"{weight}_", f"parametrizations.{weight}")) for key in changed)

    with torch.no_grad():
        expected = tensors(ours.eval()(x, hx))
        twin = copy.deepcopy(ours)
        fresh = make(name, way)[0].eval()
        fresh.load_state_dict(ours.state_dict(), strict=True)
        for other in (twin, fresh):
            for a, b in zip(tensors(other(x, hx)), expected, strict=True):
                close(a, b)
    assert not any(a is b for a, b in zip(twin.parameters(), ours.parameters(), strict=True))

    if way in MODERN:
        parametrize.remove_parametrizations(ours, weight)
    elif "prune" in way:
        prune.remove(ours, weight)
    else:
        getattr(nn.utils, f"remove_{way.removeprefix('old ').replace(' ', '_')}")(ours, weight)
    assert {key for key, _ in ours.named_parameters()} == set(twins(name)[0].state_dict())
    for a, b in zip(tensors(ours(x, hx)), expected, strict=True):
        close(a, b)


@modern_ways
@pytest.mark.parametrize("name", LAYERS)
def test_copies_in_the_middle_of_training(name: str, way: str) -> None:
    """torch.nn's layers can't be copied there: they list the computed weight, which has a past."""
    ours, _ = make(name, way)
    x = input_of(name)
    tensors(ours(x))[0].sum().backward()
    for a, b in zip(copy.deepcopy(ours).parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", HOOKS)
@every_module
def test_pickles_as_far_as_torch_can(name: str, way: str) -> None:
    ours, _ = make(name, way)
    x = input_of(name)
    expected = tensors(ours.eval()(x))
    twin = pickle.loads(pickle.dumps(ours))
    for a, b in zip(tensors(twin(x)), expected, strict=True):
        close(a, b)


@every_module
def test_weight_drop_by_a_plain_attribute(name: str) -> None:
    weight, x, hx, found = recurrent(name), input_of(name), states_of(name), []
    for module in twins(name):
        dropped = WeightDrop(module, weight)
        torch.manual_seed(3)
        results = []
        for _ in range(2):
            dropped.zero_grad()
            result = tensors(dropped(x, hx))
            sum(t.square().sum() for t in result).backward()
            results += [*result, dropped.raw.grad]
        assert not torch.equal(results[0], results[len(results) // 2])
        found.append([*results, *tensors(dropped.eval()(x, hx))])
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_every_weight_of_two_layers_in_two_directions(name: str) -> None:
    ours, theirs = twins(name, C, H, 2, bidirectional=True)
    x = input_of(name)
    for weight in [key for key, _ in theirs.named_parameters() if "weight" in key]:
        parametrizations.weight_norm(ours, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
            close(a, b)


def test_matrices_and_params_of_a_written_cell() -> None:
    layer = Peephole(C, H, dtype=torch.float64)
    x = torch.randn(T, N, C, dtype=torch.float64)
    plain = layer(x)[0]
    parametrizations.weight_norm(layer, "weight_ih_l0")
    parametrize.register_parametrization(layer, "p_i_l0", Exponential())
    close(layer(x)[0], plain)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


class Exponential(nn.Module):
    def forward(self, log: Tensor) -> Tensor:
        return log.exp() - 2

    def right_inverse(self, w: Tensor) -> Tensor:
        return (w + 2).log()


class Mean(nn.Module):
    """Nothing to be assigned to."""

    def forward(self, w: Tensor) -> Tensor:
        return w - w.mean()


def test_a_parametrized_layer_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Peephole(C, H)
    layer(torch.randn(T, N, C))
    monkeypatch.setattr(build, "kernel", None)
    monkeypatch.setattr(build, "check", None)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert type(layer) is not Peephole
    assert layer.declaration is Peephole(C, H).declaration
    layer(torch.randn(T, N, C))


class Fixed(rnnext.Recurrent):
    """Params with initial values that can be told from others."""

    gates = ("a",)
    params = {"p": 0.5, "q": rnnext.Param(nn.init.ones_)}

    def step(a, h, p, q):  # type: ignore[no-untyped-def]
        return torch.tanh(p * a + q * h)


RESETS = {
    **WAYS,
    "exponential": lambda m, name: parametrize.register_parametrization(m, name, Exponential()),
    "mean": lambda m, name: parametrize.register_parametrization(m, name, Mean()),
}


@pytest.mark.parametrize("way", RESETS)
def test_reset_parameters_reaches_what_is_stored(way: str) -> None:
    torch.manual_seed(0)
    layer = RESETS[way](Fixed(C, H, 2, bidirectional=True), "weight_hh_l0")
    if way in ("exponential", "mean"):
        RESETS[way](layer, "p_l0")
        RESETS[way](layer, "q_l1_reverse")
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(0.1)
    layer.reset_parameters()
    for name, p in layer.named_parameters():
        if "weight" in name or "bias" in name:
            assert p.std() > 0.01, name
    layer.eval()
    layer(torch.randn(T, N, C))
    if way == "orthogonal":
        torch.testing.assert_close(layer.weight_hh_l0 @ layer.weight_hh_l0.T, torch.eye(H))
    elif way in ("weight norm", "weight norm and drop", "drop", "exponential"):
        assert 0.9 * H**-0.5 < layer.weight_hh_l0.abs().max() <= H**-0.5
    constant = 0.0 if way == "mean" else 1.0
    torch.testing.assert_close(layer.p_l0, torch.full([H], 0.5 * constant))
    torch.testing.assert_close(layer.p_l1, torch.full([H], 0.5))
    torch.testing.assert_close(layer.q_l1, torch.ones(H))
    torch.testing.assert_close(layer.q_l1_reverse, torch.full([H], constant))


def test_reset_parameters_of_a_plain_layer_draws_as_the_constructor_does() -> None:
    torch.manual_seed(0)
    layer = Fixed(C, H, 2)
    before = copy.deepcopy(layer.state_dict())
    torch.manual_seed(0)
    layer.reset_parameters()
    assert all(map(torch.equal, layer.state_dict().values(), before.values()))
