"""Tilings of persistent scans: properties for any sizes, what is planned for known ones, and the
places of values in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from emulated import SHARED
from hypothesis import given
from hypothesis import strategies as st

BFLOAT16, HALF, TF32, SPLIT = range(4)


class Tiling(NamedTuple):
    units: int
    slices: int
    groups: int
    columns: int
    rows: int
    depth: int
    words: int
    row_warps: int
    shared: int
    cycles: int


def tiling(
    gates: int,
    states: int,
    H: int,
    N: int,
    forward: bool = True,
    precision: int = BFLOAT16,
    multiprocessors: int = 132,
    shared: int = SHARED,
    cluster: bool = False,
) -> Tiling | None:
    found = torch.ops.rnnext_emulator.tiling(
        cluster, gates, states, H, N, forward, precision, multiprocessors, shared
    )
    return Tiling(*found) if found else None


@given(
    gates=st.integers(1, 6),
    states=st.integers(1, 4),
    H=st.integers(1, 3000),
    N=st.integers(1, 3000),
    forward=st.booleans(),
    precision=st.sampled_from([BFLOAT16, HALF, TF32, SPLIT]),
    multiprocessors=st.sampled_from([1, 7, 68, 108, 132]),
    shared=st.sampled_from([48 * 1024, 163 * 1024, SHARED]),
    cluster=st.booleans(),
)
def test_any_tiling_fits_and_leaves_nothing_out(
    gates: int,
    states: int,
    H: int,
    N: int,
    forward: bool,
    precision: int,
    multiprocessors: int,
    shared: int,
    cluster: bool,
) -> None:
    t = tiling(gates, states, H, N, forward, precision, multiprocessors, shared, cluster)
    if t is None:
        return
    assert t.shared <= shared
    assert (t.slices - 1) * t.units < H <= t.slices * t.units
    rows, exchanged = (gates * t.units, 1) if forward else (t.units, gates)
    assert 16 * (t.rows - 1) < rows <= 16 * t.rows
    assert t.columns in (1, 2, 3, 4, 8)
    assert t.words == (2 if precision in (BFLOAT16, HALF) else 1)
    assert t.row_warps in (1, 2, 4, 8)
    assert t.cycles > 0
    assert (t.groups - 1) * 8 * t.columns < N  # no group is without sequences
    if cluster:
        assert t.slices <= 16
        assert t.groups * 8 * t.columns >= N
        # What a slice gives to the others is whole tiles.
        assert exchanged * t.units % (8 * t.words) == 0
        assert t.depth * 8 * t.words == exchanged * t.units * t.slices
    else:
        assert t.slices * t.groups <= multiprocessors  # or they would wait for ever
        assert t.rows <= 4
        assert 8 * t.words * (t.depth - 1) < exchanged * H <= 8 * t.words * t.depth


GRID, CLUSTER = False, True


@pytest.mark.parametrize(
    ("cluster", "gates", "states", "H", "N", "forward", "precision", "expected"),
    [
        # LSTM: slices, units, groups, tiles of 8 sequences
        (GRID, 4, 2, 200, 20, True, BFLOAT16, (25, 8, 3, 1)),
        (GRID, 4, 2, 650, 20, True, BFLOAT16, (82, 8, 1, 3)),
        (GRID, 4, 2, 1024, 8, True, SPLIT, (128, 8, 1, 1)),
        (GRID, 4, 2, 1500, 20, True, BFLOAT16, (125, 12, 1, 3)),
        (GRID, 4, 2, 768, 16, True, HALF, (96, 8, 1, 2)),
        (GRID, 4, 2, 650, 20, False, BFLOAT16, (41, 16, 3, 1)),
        (GRID, 4, 2, 1500, 20, False, BFLOAT16, (94, 16, 1, 3)),
        (GRID, 4, 2, 768, 20, False, SPLIT, (48, 16, 2, 2)),
        (CLUSTER, 4, 2, 64, 20, True, BFLOAT16, (1, 64, 3, 1)),
        (CLUSTER, 4, 2, 200, 20, True, BFLOAT16, (13, 16, 3, 1)),
        (CLUSTER, 4, 2, 256, 128, True, BFLOAT16, (16, 16, 8, 2)),
        (CLUSTER, 4, 2, 512, 20, True, BFLOAT16, (16, 32, 3, 1)),
        (CLUSTER, 4, 2, 200, 20, False, SPLIT, (13, 16, 3, 1)),
        # GRU
        (GRID, 3, 1, 200, 20, True, BFLOAT16, (25, 8, 3, 1)),
        (GRID, 3, 1, 1024, 8, True, SPLIT, (128, 8, 1, 1)),
        (CLUSTER, 3, 1, 650, 20, True, BFLOAT16, (14, 48, 3, 1)),
        # what does not fit
        (GRID, 4, 2, 1500, 20, True, SPLIT, None),
        (GRID, 4, 2, 1150, 20, False, SPLIT, None),
        (GRID, 4, 2, 2048, 64, True, BFLOAT16, None),
        (CLUSTER, 4, 2, 650, 20, True, BFLOAT16, None),
        (CLUSTER, 4, 2, 512, 20, True, SPLIT, None),
    ],
)
def test_an_h200(
    cluster: bool,
    gates: int,
    states: int,
    H: int,
    N: int,
    forward: bool,
    precision: int,
    expected: tuple[int, ...] | None,
) -> None:
    t = tiling(gates, states, H, N, forward, precision, cluster=cluster)
    found = (t.slices, t.units, t.groups, t.columns) if t else None
    assert found == expected


def planned(cell: str, T: int, N: int, H: int, dtype: torch.dtype | None = None) -> list[str]:
    """The words of the forward and of the backward."""
    text = torch.ops.rnnext.plan_cuda(cell, torch.empty(0), T, N, H, [H], operand_dtype=dtype)
    return [line.split(": ", 1)[1] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("T", "N", "H", "dtype", "expected"),
    [
        (100, 20, 64, torch.bfloat16, ("one block of 64 units", "one block of 64 units")),
        (100, 20, 200, torch.bfloat16, ("a cluster of 13 blocks", "a cluster of 13 blocks")),
        (100, 20, 200, None, ("a cluster of 13 blocks", "a cluster of 13 blocks")),
        (100, 20, 650, torch.bfloat16, ("82 slices of 8 units", "41 slices of 16 units")),
        (100, 8, 512, None, ("64 slices of 8 units", "32 slices of 16 units")),
        (100, 128, 650, None, ("82 slices of 8 units", "step by step (many sequences")),
        (100, 128, 1024, torch.bfloat16, ("step by step (many", "step by step (many")),
        (100, 20, 1500, None, ("step by step (the weights do", "step by step (the weights do")),
        (3, 20, 200, torch.bfloat16, ("step by step (few steps", "step by step (few steps")),
    ],
)
def test_the_way_that_is_expected_to_be_fastest(
    T: int, N: int, H: int, dtype: torch.dtype | None, expected: tuple[str, str]
) -> None:
    for line, words in zip(planned("LSTM", T, N, H, dtype), expected, strict=True):
        assert words in line
        assert line.endswith(" cycles a step expected")


def test_what_a_device_does_not_run_is_done_another_way() -> None:
    """Clusters of 16 blocks here, in whose place slices of the same size may be all over the chip;
    what is known of the ones is not said of the others.
    """
    assert all("a cluster of 16" in line for line in planned("LSTM", 50, 8, 256, torch.bfloat16))
    torch.ops.rnnext_emulator.set_device(132, SHARED, 16, 1, running_cluster=8)
    for _ in range(2):
        forward, backward = planned("LSTM", 50, 8, 256, torch.bfloat16)
        assert "in one launch, 32 slices of 8 units, 1 group" in forward
        assert "in one launch, 16 slices of 16 units, 1 group" in backward


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("chunk", [1, 16, 48, 200])
def test_each_value_of_the_depth_is_one_of_a_unit(gates: int, chunk: int) -> None:
    depth = 3 * gates * chunk
    places = torch.ops.rnnext_emulator.depth_places(gates, chunk, depth)
    found = list(zip(places[0::3], places[1::3], places[2::3], strict=True))
    assert [place for _, _, place in found] == list(range(depth))
    units = {(gate, unit) for gate, unit, _ in found}
    assert units == {(gate, unit) for gate in range(gates) for unit in range(3 * chunk)}


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 8])
def test_each_value_of_the_exchange_has_a_place_of_its_own(words: int, columns: int) -> None:
    depth = 5 * 8 * words
    places = torch.ops.rnnext_emulator.exchange_places(words, columns, depth)
    assert sorted(places) == list(range(depth * 8 * columns))
