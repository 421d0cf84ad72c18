"""A Recurrent layer as a module: copies, casts, exchanged weights, torch.compile."""

# ruff: noqa: RUF012

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_recurrent import C, H, N, Peephole, T, close, leaves, make
from torch import nn
from torch.nn.utils import parametrizations

import rnnext
from rnnext.codegen import build


def round_trip_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def round_trip_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def round_trip_weights(module: nn.Module) -> Any:
    fresh = Peephole(C, H, proj_size=2, bound=0.5, dtype=torch.float64)
    fresh.load_state_dict(module.state_dict())
    return fresh


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, round_trip_pickle, round_trip_file, round_trip_weights]
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_compute_the_same_from_their_own_weights(
    duplicate: Callable[[nn.Module], Any], used: bool
) -> None:
    layer = make(Peephole, proj_size=2, bound=0.5)
    x = torch.randn(T, N, C, dtype=torch.float64)
    expected = leaves(layer(x)) if used else leaves(copy.deepcopy(layer)(x))
    twin = duplicate(layer)
    assert twin.declaration is layer.declaration
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all(map(torch.equal, leaves(twin(x)), expected))


def test_casts_and_the_meta_device() -> None:
    layer = make(Peephole, proj_size=2).float()
    x = torch.randn(T, N, C)
    empty = Peephole(C, H, proj_size=2, device="meta")
    assert [t.shape for t in leaves(empty(x.to("meta")))] == [t.shape for t in leaves(layer(x))]
    with pytest.raises(ValueError, match=r"RNN input dtype .* Convert input: input.to"):
        make(Peephole, proj_size=2)(x)


def test_weights_are_those_of_the_moment() -> None:
    layer = make(Peephole, proj_size=2)
    x = torch.randn(T, N, C, dtype=torch.float64)
    plain = layer(x)[0]
    for name in ("weight_hh_l0", "weight_hr_l0", "p_l0"):
        zero = {name: torch.zeros_like(getattr(layer, name))}
        without = torch.func.functional_call(layer, zero, (x,))[0]
        assert not torch.equal(without, plain)
        changed = copy.deepcopy(layer)
        with torch.no_grad():
            getattr(changed, name).zero_()
        assert torch.equal(changed(x)[0], without)
    assert torch.equal(layer(x)[0], plain)
    parametrizations.weight_norm(layer, "weight_hr_l0")
    close(layer(x)[0], plain)
    close(copy.deepcopy(layer)(x)[0], plain)


@pytest.mark.parametrize("used", [False, True])
def test_compiles_whole_before_and_after_the_cell_is(
    used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(rnnext.Recurrent):
        gates = ("r", "z")
        apart_gates = ("n",)
        constants = {"used": False}

        def step(r, z, n_x, n_h, h, used):  # type: ignore[no-untyped-def]
            n = torch.tanh(n_x + torch.sigmoid(r) * n_h)
            return n + torch.sigmoid(z) * (h - n)

    def kernel(declaration: Any) -> str:
        with threading.RLock():  # which torch.compile can't look into
            return "GRU"

    monkeypatch.setattr(build, "kernel", kernel)
    layer = make(Mine, used=used)
    x = torch.randn(T, N, C, dtype=torch.float64)
    if used:
        layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for options in ({}, {"lengths": [5, 2, 1, 4]}):
        for a, b in zip(compiled(x, **options), layer(x, **options), strict=True):
            close(a, b)
