"""LSTM with proj_size against torch.nn's: the states have two widths."""

import itertools

import pytest
import torch
from test_modules import C, N, T, assert_equal, assert_same_error, call, leaf, twins


@pytest.mark.parametrize("form", ["batched", "unbatched", "sorted", "unsorted", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_projected_lstm_equals_nn(form: str, batch_first: bool) -> None:
    for stack, bias, given in itertools.product(((1, 1), (2, 2)), (True, False), (True, False)):
        layers, directions = stack
        options = {"num_layers": layers, "bidirectional": directions == 2, "proj_size": 2}
        modules = twins("LSTM", C, 5, bias=bias, batch_first=batch_first, **options)
        x = leaf(N, T, C) if batch_first else leaf(T, N, C)
        rows: tuple[int, ...] = (layers * directions, N)
        if form == "unbatched":
            x, rows = leaf(T, C), rows[:1]
        states = {"h_0": leaf(*rows, 2), "c_0": leaf(*rows, 5)} if given else {}
        hx = tuple(states.values()) or None
        theirs, ours = (call(module, form, x, hx) for module in modules)
        assert_equal(ours, theirs, {"x": x, **states}, [*reversed(modules)])
        assert repr(modules[1]) == repr(modules[0])
        assert list(modules[1].state_dict()) == list(modules[0].state_dict())


def test_projected_lstm_checks_the_width_of_each_state_as_nn() -> None:
    theirs, ours = twins("LSTM", C, 5, proj_size=2)
    x, h, c = (torch.zeros(*s, dtype=torch.float64) for s in ((T, N, C), (1, N, 2), (1, N, 5)))
    assert ours(x, (h, c))[0].shape == (T, N, 2)
    for bad in ((c, c), (h, h), (h, c[:, :1]), (h[0], c)):
        assert_same_error(ours, theirs, x, bad)
