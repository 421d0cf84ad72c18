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
    N=st.integers(1, 300),
    forward=st.booleans(),
    precision=st.sampled_from([BFLOAT16, HALF, TF32, SPLIT]),
    multiprocessors=st.sampled_from([1, 7, 68, 108, 132]),
    shared=st.sampled_from([48 * 1024, 163 * 1024, SHARED]),
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
) -> None:
    t = tiling(gates, states, H, N, forward, precision, multiprocessors, shared)
    if t is None:
        return
    assert t.slices * t.groups <= multiprocessors  # or they would wait for each other for ever
    assert t.shared <= shared
    assert (t.slices - 1) * t.units < H <= t.slices * t.units
    rows, depth = (gates * t.units, H) if forward else (t.units, gates * H)
    assert 16 * (t.rows - 1) < rows <= 16 * t.rows <= 64
    assert 8 * t.words * (t.depth - 1) < depth <= 8 * t.words * t.depth
    assert t.columns in (1, 2, 3, 4, 8)
    assert t.words == (2 if precision in (BFLOAT16, HALF) else 1)
    assert (t.groups - 1) * 8 * t.columns < N  # no group is without sequences


@pytest.mark.parametrize(
    ("gates", "states", "H", "N", "forward", "precision", "expected"),
    [
        # LSTM: slices, units, groups, tiles of 8 sequences
        (4, 2, 200, 20, True, BFLOAT16, (25, 8, 3, 1)),
        (4, 2, 650, 20, True, BFLOAT16, (82, 8, 1, 3)),
        (4, 2, 1024, 8, True, SPLIT, (128, 8, 1, 1)),
        (4, 2, 1500, 20, True, BFLOAT16, (125, 12, 1, 3)),
        (4, 2, 768, 16, True, HALF, (96, 8, 1, 2)),
        (4, 2, 650, 20, False, BFLOAT16, (41, 16, 3, 1)),
        (4, 2, 1500, 20, False, BFLOAT16, (94, 16, 1, 3)),
        (4, 2, 768, 20, False, SPLIT, (48, 16, 2, 2)),
        # GRU
        (3, 1, 200, 20, True, BFLOAT16, (25, 8, 3, 1)),
        (3, 1, 1024, 8, True, SPLIT, (128, 8, 1, 1)),
        # what does not fit
        (4, 2, 1500, 20, True, SPLIT, None),
        (4, 2, 1150, 20, False, SPLIT, None),
        (4, 2, 2048, 64, True, BFLOAT16, None),
    ],
)
def test_an_h200(
    gates: int,
    states: int,
    H: int,
    N: int,
    forward: bool,
    precision: int,
    expected: tuple[int, ...] | None,
) -> None:
    t = tiling(gates, states, H, N, forward, precision)
    found = (t.slices, t.units, t.groups, t.columns) if t else None
    assert found == expected


@given(
    gates=st.integers(1, 6),
    states=st.integers(1, 4),
    H=st.integers(1, 1500),
    N=st.integers(1, 3000),
    forward=st.booleans(),
    precision=st.sampled_from([BFLOAT16, HALF, TF32, SPLIT]),
    shared=st.sampled_from([48 * 1024, 163 * 1024, SHARED]),
)
def test_any_cluster_fits_and_leaves_nothing_out(
    gates: int, states: int, H: int, N: int, forward: bool, precision: int, shared: int
) -> None:
    t = tiling(gates, states, H, N, forward, precision, 132, shared, cluster=True)
    if t is None:
        return
    assert 1 <= t.slices <= 16
    assert t.shared <= shared
    assert (t.slices - 1) * t.units < H <= t.slices * t.units
    rows = (gates if forward else 1) * t.units
    assert 16 * (t.rows - 1) < rows <= 16 * t.rows
    # What a slice gives to the others is whole tiles.
    exchanged = (1 if forward else gates) * t.units
    assert exchanged % (8 * t.words) == 0
    assert t.depth * 8 * t.words == exchanged * t.slices
    assert (t.groups - 1) * 8 * t.columns < N <= t.groups * 8 * t.columns
    assert t.row_warps in (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("gates", "states", "H", "N", "forward", "precision", "expected"),
    [
        # LSTM: blocks of a cluster, units, clusters, tiles of 8 sequences
        (4, 2, 64, 20, True, BFLOAT16, (1, 64, 3, 1)),
        (4, 2, 200, 20, True, BFLOAT16, (13, 16, 3, 1)),
        (4, 2, 256, 128, True, BFLOAT16, (16, 16, 8, 2)),
        (4, 2, 512, 20, True, BFLOAT16, (16, 32, 3, 1)),
        (4, 2, 200, 20, False, SPLIT, (13, 16, 3, 1)),
        # what does not fit
        (4, 2, 650, 20, True, BFLOAT16, None),
        (4, 2, 512, 20, True, SPLIT, None),
        # GRU
        (3, 1, 650, 20, True, BFLOAT16, (14, 48, 3, 1)),
    ],
)
def test_clusters_of_an_h200(
    gates: int,
    states: int,
    H: int,
    N: int,
    forward: bool,
    precision: int,
    expected: tuple[int, ...] | None,
) -> None:
    t = tiling(gates, states, H, N, forward, precision, cluster=True)
    found = (t.slices, t.units, t.groups, t.columns) if t else None
    assert found == expected


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
