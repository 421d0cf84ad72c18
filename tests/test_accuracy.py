"""Errors of long sequences, saturated gates, and NaN and infinity: beside torch.nn in float64.

Float64, since in float32 torch.nn's LSTM is computed by other code (oneDNN's).
"""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import CELLS, NN_CELLS, Case, Data, error, torch_nn
from test_bfloat16 import with_bfloat16
from test_derivatives import data_of
from torch import Tensor

from rnnext import ops, reference

nn_cells = pytest.mark.parametrize("cell", NN_CELLS)
NAN, INF = float("nan"), float("inf")


def assert_no_less_exact(data: Data, oracle: Callable[..., list[Tensor]], where: object) -> None:
    """Each result within 1e-5, or within twice the error of the oracle itself in float32."""
    expected, peer = data.run(oracle, torch.float64), data.run(oracle, torch.float32)
    result = data.run(ops.rnn, torch.float32)
    for name in data.names:
        bound = max(1e-5, 2 * error(peer[name], expected[name]))
        assert error(result[name], expected[name]) <= bound, (where, name)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("N", "H"), [(3, 64), (1, 200), (16, 200)])
@pytest.mark.parametrize("cell", [*NN_CELLS, "Peephole"])
def test_a_thousand_steps(cell: str, N: int, H: int, count: int, threads: None) -> None:
    torch.set_num_threads(count)
    data = data_of(cell, Case(T=1000, N=N, C=32, H=H))
    assert_no_less_exact(data, torch_nn if cell in NN_CELLS else reference.rnn, count)


# Where the weights are read as they lie, packed, and shared out by units over two threads; packed
# sequences of such lengths; and without h0, whose zeros show what is not finite all the same.
CASES = (
    Case(T=5, N=2, C=6, H=33),
    Case(T=20, N=11, C=6, H=40, L=2),
    Case(T=8, N=1, C=9, H=512),
    Case(T=12, N=5, C=6, H=34, D=2, lengths=(12, 9, 9, 4, 1)),
    Case(T=20, N=11, C=6, H=40, h0=False),
    Case(T=1, N=21, C=6, H=33, D=2, h0=False),
    Case(T=2, N=4, C=6, H=130, h0=False),
    Case(T=9, N=6, C=6, H=34, D=2, lengths=(9, 9, 9, 9, 4, 1), h0=False),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)


@nn_cells
@cases
def test_saturated_gates(cell: str, case: Case) -> None:
    """Half of the inputs of the gates are near 1e4 or -1e4; what they keep from learning is 0."""
    data = Data(cell, case)
    data.x = data.x.sign()
    generator = torch.Generator().manual_seed(0)
    for w in data.weights:
        if w.dim() == 2 and w.shape[1] == case.C:
            some = torch.randint(-1, 2, (len(w), 1), generator=generator)
            w[:, :1] += 1e4 * some * torch.randint(0, 2, (len(w), 1), generator=generator)
    assert_no_less_exact(data, torch_nn, case)
    expected, result = data.run(torch_nn, torch.float64), data.run(ops.rnn, torch.float32)
    for name in data.names:
        assert result[name].isfinite().all(), name
        assert (result[name][expected[name] == 0] == 0).all(), name
    if cell != "RNN_RELU":
        assert any((expected[name] == 0).any() for name in data.names if name.startswith("d"))


@nn_cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs(cell: str, dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1e4, -1e4, 1e30, -1e30, INF, -INF, NAN]
    data = Data(cell, Case(T=2, N=9, C=1, H=20))
    data.x = torch.tensor(values, dtype=torch.float64).view(1, 9, 1).repeat(2, 1, 1)
    inputs = [t.detach().to(dtype) for t in data.inputs(dtype)]
    ours = ops.rnn(cell, *data.split(inputs), **data.options)
    theirs = torch_nn(cell, *data.split(inputs), **data.options)
    for a, b in zip(ours, theirs, strict=True):  # sums of 1e30 and -1e30 lose digits
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-3, atol=1e-6)


def spoiled(cell: str, case: Case) -> Iterator[tuple[str, Data]]:
    """Data with one value that is not finite: in x, h0, a weight or an incoming gradient."""
    original = Data(cell, case)
    rows = original.x.numel() // case.C
    places = [("x", 0, row) for row in (0, rows // 2, rows - 1)]
    places += [("grads", 0, row) for row in (0, rows // 2, rows - 1)]
    places += [("h0", i, 0) for i in range(len(original.h0))]
    places += [("weights", i, 3) for i in range(len(original.weights))]
    places += [("grads", i, 0) for i in range(1, len(original.grads))]
    for (name, i, row), bad in itertools.product(places, (NAN, INF, -INF)):
        data = Data(cell, case)
        tensor = data.x if name == "x" else getattr(data, name)[i]
        rows_of_it = tensor.view(len(tensor), -1) if name == "weights" else tensor.flatten(0, -2)
        rows_of_it[row, min(2, rows_of_it.shape[1] - 1)] = bad
        yield f"{bad} in row {row} of {name} {i}", data


def kinds(t: Tensor) -> Tensor:
    """0 where a value is finite, 1 and -1 where it is infinite, 2 where it is NaN."""
    return torch.where(t.isnan(), 2, torch.where(t.isinf(), t.sign(), 0))


def under_autocast(*args, **options):  # type: ignore[no-untyped-def]
    with torch.autocast("cpu", torch.bfloat16):
        return ops.rnn(*args, **options)


@nn_cells
@cases
def test_nan_and_infinity_go_where_they_do_in_torch_nn(
    cell: str, case: Case, threads: None
) -> None:
    torch.set_num_threads(2)
    for place, data in spoiled(cell, case):
        expected = data.run(torch_nn, torch.float64)
        for dtype in (torch.float32, torch.float64):
            result = data.run(ops.rnn, dtype)
            for name in data.names:
                assert torch.equal(kinds(result[name]), kinds(expected[name])), (place, dtype, name)
        # An infinity may get the sign of a factor near zero, which is not exact in bfloat16.
        result = data.run(under_autocast, torch.float32)
        for name in data.names:
            found, wanted = kinds(result[name]).abs(), kinds(expected[name]).abs()
            assert torch.equal(found, wanted), (place, "bfloat16", name)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("T", "N", "H", "bfloat16"), [(9, 11, 33, False), (2, 6, 33, False), (9, 11, 34, True)]
)
def test_the_other_sequences_are_left_alone(
    cell: str, T: int, N: int, H: int, bfloat16: bool, bad: float
) -> None:
    data = Data(cell, Case(T=T, N=N, C=6, H=H, L=2))
    run = with_bfloat16 if bfloat16 else ops.rnn
    clean = data.run(run, torch.float32)
    data.x[1, 5, 2] = bad
    for state in data.h0:
        state[0, 5, 3] = bad
    data.grads[0][1, 5, 4] = bad
    dirty = data.run(run, torch.float32)
    others = [n for n in range(N) if n != 5]
    for name in data.names:
        if not name.startswith(("dweight", "dbias")):
            assert torch.equal(clean[name][:, others], dirty[name][:, others]), name
