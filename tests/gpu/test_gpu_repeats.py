"""The same bits fifty times, forward and backward, on each path: what races would not give."""

import pytest
import torch
from cases import CELLS, Case, Data
from gpu_cases import REPEATED, WRITTEN
from on_device import DEVICE, ON_CUDA, assert_same_bits, data_for, paths, poison_allocator

from rnnext import ops

REPEATS = 50 if ON_CUDA else 5
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)


def repeat(data: Data, dtype: torch.dtype) -> None:
    """Calls follow each other without a pause; what is freed between them is poisoned."""
    run = data.prepared(ops.rnn, dtype)
    first = run()
    assert all(t.isfinite().all() for t in first.values())
    for _ in range(REPEATS // 5):
        for result in [run() for _ in range(5)]:
            assert_same_bits(result, first)
        poison_allocator()


@paths
@dtypes
@pytest.mark.parametrize("cell", CELLS)
def test_a_repeat_has_the_same_bits(cell: str, dtype: torch.dtype, path: str) -> None:
    for case in REPEATED if cell in ("LSTM", "GRU") else REPEATED[:2]:
        repeat(Data(cell, case, device=DEVICE), dtype)


@paths
@pytest.mark.parametrize("cell", WRITTEN)
def test_a_repeat_of_a_written_cell_has_the_same_bits(cell: str, path: str) -> None:
    for case in (Case(T=20, N=20, C=9, H=65), Case(T=10, N=2, C=9, H=333)):
        repeat(data_for(cell, case), torch.float32)


@paths
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_results_do_not_depend_on_the_other_sequences(cell: str, path: str) -> None:
    """But for the order of sums: what leaks from another row is far off."""
    data = Data(cell, Case(T=20, N=33, C=9, H=200), device=DEVICE)
    whole = data.run(ops.rnn, torch.float32)["y"]
    for rows in (slice(0, 1), slice(5, 12), slice(20, 33)):
        part = Data(cell, Case(T=20, N=rows.stop - rows.start, C=9, H=200), device=DEVICE)
        part.x, part.weights = data.x[:, rows], data.weights
        part.h0 = [h[:, rows] for h in data.h0]
        part.grads = [g[:, rows] for g in data.grads]
        y = part.run(ops.rnn, torch.float32)["y"]
        torch.testing.assert_close(y, whole[:, rows], rtol=1e-4, atol=1e-6)
