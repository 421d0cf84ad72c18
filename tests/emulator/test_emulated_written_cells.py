"""Cells written in Python, compiled for the emulated device: every output and gradient, by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cases import Case, Data, error
from test_derivatives import second
from test_ops_batch_sums import CASES as BATCHES
from test_ops_batch_sums import CELLS as MIXING
from test_ops_batch_sums import Call
from test_ops_batch_sums import check as check_mixing
from test_written_cells import check, data_of

from rnnext import ops, reference
from rnnext.cell import Declaration
from rnnext.codegen import build, cuda

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from noise_cell import Noises

# One step without products of its own or sums over units, and a recurrent matrix.
PERSISTENT = ("LightGRU", "GRU", "Zoneout", "SLSTM", "Peephole", "RandomSlope")
# Sums over units; products after a stage and before all; a state and a product of one value a row;
# noise of a whole sequence; no recurrent matrix; all at once.
STEPWISE = (
    *("LayerNormLSTM", "MinimalGated", "Spread", "Tied", "Variational", "IndRNN", "Norms"),
    "Everything",
)
CASES = (
    Case(T=5, N=3, C=4, H=7, L=2, D=2, dropout=0.3),
    Case(T=6, N=4, C=3, H=35, D=2, lengths=(6, 4, 4, 1), bias=False),
    Case(T=3, N=9, C=2, H=9, h0=False),
    Case(T=1, N=1, C=1, H=5),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("cell", [*PERSISTENT, *STEPWISE])
@every_case
def test_steps_equal_the_reference(
    cell: str, case: Case, monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> None:
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "steps")
    check(data_of(cell, case))


@pytest.mark.parametrize("path", ["grid", "cluster"], indirect=True)
@pytest.mark.parametrize("cell", PERSISTENT)
@every_case
def test_persistent_scans_equal_the_reference(
    cell: str, case: Case, path: str, poisoned_memory: None
) -> None:
    check(data_of(cell, case), (torch.float32,))


@pytest.mark.parametrize("cell", MIXING, ids=lambda cell: cell.name)
@pytest.mark.parametrize("alive", BATCHES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
def test_sums_over_sequences(
    cell: Declaration, alive: list[int] | None, given: bool, poisoned_memory: None
) -> None:
    """Second derivatives among them, and each step by a kernel a stage."""
    check_mixing(Call(cell, alive, given), torch.float64, 1e-10)
    check_mixing(Call(cell, alive, given), torch.float32, 1e-4)


@pytest.mark.parametrize("cell", STEPWISE)
def test_other_cells_have_no_persistent_scan(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "persistent")
    with pytest.raises(RuntimeError, match="the cell has no other kernel"):
        data_of(cell, CASES[3]).run(ops.rnn, torch.float32)


@pytest.mark.parametrize("cell", ["LightGRU", "SLSTM", "MinimalGated"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_operands(cell: str, dtype: torch.dtype) -> None:
    data = data_of(cell, Case(T=4, N=5, C=3, H=24)).rounded(dtype)
    expected, result = data.reference(), data.run(ops.rnn, dtype)
    for name in data.names:
        assert result[name].dtype == dtype
        assert error(result[name], expected[name]) < (5e-3 if dtype == torch.float16 else 3e-2), (
            name
        )


@pytest.mark.parametrize("cell", ["SLSTM", "GRU", "Peephole"])
@pytest.mark.parametrize(
    "case",
    [
        Case(T=4, N=3, C=3, H=12, L=2, D=2, heads=3),
        Case(T=3, N=4, C=2, H=10, heads=10, lengths=(3, 2, 2, 1), bias=False),
    ],
    ids=str,
)
def test_heads(cell: str, case: Case, poisoned_memory: None) -> None:
    check(data_of(cell, case))


@pytest.mark.parametrize("cell", ["Zoneout", "Variational", "Everything"])
def test_without_a_seed_noise_is_its_expectation(cell: str, poisoned_memory: None) -> None:
    data = data_of(cell, CASES[0])
    data.seed = None
    check(data)


@pytest.mark.parametrize("lengths", [(), (5, 3, 3, 1)])
def test_every_kind_of_noise_is_that_of_the_reference(lengths: tuple[int, ...]) -> None:
    name = build.kernel(Noises._default)
    assert name is not None
    data = Data(name, Case(T=5, N=4, C=1, H=13, D=2, lengths=lengths))
    inputs = data.split([t.detach() for t in data.inputs(torch.float64)])
    results, expected = (run(name, *inputs, **data.options) for run in (ops.rnn, reference.rnn))
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert error(a, b) < 1e-12, k


@pytest.mark.parametrize("cell", ["LightGRU", "LayerNormLSTM", "MinimalGated", "Zoneout"])
@pytest.mark.parametrize(
    "case",
    [Case(T=3, N=2, C=2, H=4, L=2, D=2), Case(T=4, N=3, C=2, H=3, lengths=(4, 2, 1), h0=False)],
    ids=str,
)
def test_second_derivatives(cell: str, case: Case, poisoned_memory: None) -> None:
    """By the cell of values and tangents."""
    data = data_of(cell, case)
    result, expected = (second(data, run, torch.float64) for run in (ops.rnn, reference.rnn))
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-11, name


def test_what_is_not_in_the_cache_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of("Elman", CASES[3])
    monkeypatch.setattr(cuda, "compile", lambda name: None)  # as without nvcc
    with pytest.raises(ValueError, match=r"no cell is called 'Elman_\w+' on CUDA.*no nvcc"):
        data.run(ops.rnn, torch.float32)
    with pytest.raises(ValueError, match="no cell is called 'Mine' on CUDA"):
        torch.ops.rnnext.rnn("Mine", data.x, [], data.weights, *data.positional_options)


def test_the_library_of_another_cell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = data_of("SRU", CASES[3]), data_of("LightGRU", CASES[3])
    folder = cuda.compile(other.cell)
    monkeypatch.setattr(cuda, "compile", lambda name: folder)
    with pytest.raises(RuntimeError, match=rf"the library of {data.cell} holds {other.cell}"):
        data.run(ops.rnn, torch.float32)
