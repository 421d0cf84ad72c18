"""Sizes and arguments that torch's own tests of RNNs try: attributes, empty dimensions, shapes."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_modules import CELLS, LAYERS, C, H, N, T, assert_equal, assert_same_error, leaf, twins
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnext


def test_nonlinearity_by_name_and_by_place() -> None:
    for options in ({"nonlinearity": "relu"}, {}):
        args = (C, H) if options else (C, H, 1, "relu")
        rnn = rnnext.RNN(*args, **options)
        assert rnn.nonlinearity == "relu"
        assert rnn.mode == "RNN_RELU"
    assert rnnext.RNN(C, H).nonlinearity == "tanh"
    assert rnnext.RNNCell(C, H, True, "relu").nonlinearity == "relu"


@pytest.mark.parametrize("name", LAYERS)
def test_attributes_are_nns(name: str) -> None:
    for bias, bidirectional in itertools.product((False, True), repeat=2):
        options = {"num_layers": 2, "bias": bias, "dropout": 0.5, "bidirectional": bidirectional}
        theirs, ours = twins(name, C, H, **options)
        for attribute in theirs.__constants__:
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert len(ours.all_weights) == len(theirs.all_weights)
        for mine, nns in zip(ours.all_weights, theirs.all_weights, strict=True):
            assert all(map(torch.equal, mine, nns))
        listed = [id(w) for weights in ours.all_weights for w in weights]
        assert listed == [id(p) for p in ours.parameters()]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(), (N,)], ids=["unbatched", "batched"])
def test_cells_without_units(name: str, batch: tuple[int, ...]) -> None:
    modules = twins(name, C, 0)
    x, h, c = leaf(*batch, C), leaf(*batch, 0), leaf(*batch, 0)
    for hx in (None, (h, c) if name == "LSTMCell" else h):
        results = [module(x, hx) for module in modules]
        assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])


@pytest.mark.parametrize("name", LAYERS)
def test_no_rows_have_zero_gradients(name: str) -> None:
    modules = twins(name, C, H, 2, bidirectional=True)
    x = leaf(T, 0, C)
    results = [module(x) for module in modules]
    assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])
    modules[1](x)[0].sum().backward()
    assert all(p.grad.eq(0).all() for p in modules[1].parameters())


def misfits(*sizes: int) -> Iterator[tuple[int, ...]]:
    """The sizes, one of them replaced by another number."""
    for k in range(len(sizes)):
        yield (*sizes[:k], 7, *sizes[k + 1 :])


def state(name: str, *shape: int, width: int = H) -> Any:
    h = torch.zeros(shape, dtype=torch.float64)
    return (h, h.new_zeros(*shape[:-1], width)) if name.startswith("LSTM") else h


@pytest.mark.parametrize(("name", "proj_size"), [*((name, 0) for name in LAYERS), ("LSTM", 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_refuse_sizes_that_do_not_fit(name: str, proj_size: int, packed: bool) -> None:
    options = {"proj_size": proj_size} if proj_size else {}
    theirs, ours = twins(name, C, H, 2, bidirectional=True, **options)
    width = proj_size or H
    for n, c, layers, rows, h in misfits(N, C, 4, N, width):
        x: Any = torch.zeros(T, n, c, dtype=torch.float64)
        if packed:
            x = pack_padded_sequence(x, [T] * n)
        hx = state(name, layers, rows, h)
        if packed and name == "LSTM":  # whose states nn leaves unchecked there
            with pytest.raises(RuntimeError, match=r"Expected (3, got 7|hidden\[0\] size)"):
                ours(x, hx)
        else:
            assert_same_error(ours, theirs, x, hx)
    if name == "LSTM":
        x, h = torch.zeros(T, N, C, dtype=torch.float64), state("GRU", 4, N, width)
        for shape in misfits(4, N, H):
            assert_same_error(ours, theirs, x, (h, h.new_zeros(shape)))


@pytest.mark.parametrize("name", CELLS)
def test_cells_do_not_broadcast(name: str) -> None:
    theirs, ours = twins(name, C, H)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    good, bad = zeros(N, H), (zeros(1, H), zeros(N, 1), zeros(N + 1, H), zeros(N, H + 1))
    for h in bad:
        hx = [(h, good), (good, h), (h, h)] if name == "LSTMCell" else [h]
        for states in hx:
            assert_same_error(ours, theirs, zeros(N, C), states)
    for c in (1, C + 1):
        hx = (good, good) if name == "LSTMCell" else good
        assert_same_error(ours, theirs, zeros(N, c), hx)
