"""What the planner picks: a table that pins its decisions, and what it says when it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, Data
from test_kernels import run_python
from written_cells import ZOO

import rnnext
from rnnext import ops, plan

PACKED = "W_ih packed, W_hh packed"
IN_PLACE = "W_ih in place, W_hh in place"

# Bytes of a processor's own cache, and of the largest one.
CACHES = (1 << 20, 32 << 20)


def each_on_its_own(parts: str, block: int) -> tuple[str, str]:
    """Where the weights are large beside the rows."""
    forward = f"2 threads by rows (many), each on its own: {parts}; {PACKED}"
    end = f"; time blocks of {block} steps"
    return forward + end, forward.replace("own:", "own but for dW:") + end


# cell, (T, N, C, H), threads -> the forward line, but for its time blocks, and the backward one
# where it is another.
# The edges: 700,000 multiply-adds in all for a team (T * N * (G*H * (C + H) + 500)), or 300,000
# where the weights take more than 1 MiB; 3 sequences for two threads, 3 a thread where W_hh is
# larger than 512 KiB, 4 where it is larger than 2 MiB; 12 MiB of W_hh; 32 units and 20,000
# multiply-adds a thread for a meeting; rows that repay packing.
TABLE: dict[tuple[str, tuple[int, int, int, int], int], tuple[str, ...]] = {
    ("LSTM", (1, 1, 512, 512), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",),
    ("LSTM", (35, 20, 200, 200), 1): (f"1 thread (alone); {PACKED}; time blocks of 35 steps",),
    # A team: 1378 * (2 * (2 + 2) + 500) = 700,024;
    ("RNN_TANH", (1, 1377, 2, 2), 2): (f"1 thread (small); {PACKED}; time blocks of 1 step",),
    ("RNN_TANH", (1, 1378, 2, 2), 2): (
        f"2 threads by rows (many), each on its own: 0-688, 689-1377; {PACKED}; "
        "time blocks of 1 step",
    ),
    ("LSTM", (1, 1, 64, 64), 2): (f"1 thread (small); {IN_PLACE}; time blocks of 1 step",),
    # 2 * (4 * 182 * 364 + 500) = 530,984, of weights of more than 1 MiB, which 181 are not.
    ("LSTM", (2, 1, 181, 181), 2): (f"1 thread (small); {IN_PLACE}; time blocks of 2 steps",),
    ("LSTM", (2, 1, 182, 182), 2): (
        f"2 threads by units (few): 0-95, 96-181; {IN_PLACE}; time blocks of 2 steps",
    ),
    ("LSTM", (1, 1, 182, 182), 2): (f"1 thread (small); {IN_PLACE}; time blocks of 1 step",),
    # Sequences: 3 for two threads are enough,
    ("LSTM", (200, 3, 128, 128), 2): (
        f"2 threads by rows (many): 0-1, 2-2; {PACKED}; time blocks of 200 steps",
    ),
    ("LSTM", (200, 2, 128, 128), 2): (
        f"2 threads by units (few): 0-63, 64-127; {PACKED}; time blocks of 200 steps",
    ),
    ("LSTM", (200, 4, 128, 128), 3): (
        f"3 threads by units (few): 0-31, 32-79, 80-127; {PACKED}; time blocks of 100 steps",
    ),
    # but 3 a thread for weights of more than 512 KiB: 4 * 182^2 * 4 bytes are above, 181^2 below;
    ("LSTM", (200, 3, 181, 181), 2): (
        f"2 threads by rows (many): 0-1, 2-2; {PACKED}; time blocks of 200 steps",
    ),
    ("LSTM", (80, 5, 182, 182), 2): (
        f"2 threads by units (few): 0-95, 96-181; {PACKED}; time blocks of 80 steps",
    ),
    ("LSTM", (80, 6, 182, 182), 2): each_on_its_own("0-2, 3-5", 80),
    # and 4 for weights of more than 2 MiB: 4 * 363^2 * 4 bytes are above it, 362^2 below.
    ("LSTM", (60, 7, 362, 362), 2): (
        f"2 threads by rows (many): 0-3, 4-6; {PACKED}; time blocks of 60 steps",
    ),
    ("LSTM", (60, 7, 363, 363), 2): (
        f"2 threads by units (few): 0-175, 176-362; {PACKED}; time blocks of 60 steps",
    ),
    ("LSTM", (60, 8, 363, 363), 2): each_on_its_own("0-3, 4-7", 60),
    # A thread is on its own if it has at most 1.1 times its share of the rows: 6 of 11, not 5 of 9;
    ("GRU", (200, 9, 64, 64), 2): (
        f"2 threads by rows (many): 0-4, 5-8; {PACKED}; time blocks of 67 steps",
    ),
    ("GRU", (200, 11, 64, 64), 2): (
        f"2 threads by rows (many), each on its own: 0-5, 6-10; {PACKED}; time blocks of 67 steps",
    ),
    # in the backward, if these hand over as many values, T * N * (4 * 64 + 64 + 64), as the
    # gradients of the weights have for all threads, 2 * 4 * 64 * (64 + 64).
    ("LSTM", (17, 10, 64, 64), 2): (
        f"2 threads by rows (many), each on its own: 0-4, 5-9; {PACKED}; time blocks of 17 steps",
        "2 threads by rows (many), each on its own but for dW: 0-4, 5-9; W_ih in place, "
        "W_hh in place; time blocks of 17 steps",
    ),
    ("LSTM", (18, 10, 64, 64), 2): (
        f"2 threads by rows (many), each on its own: 0-4, 5-9; {PACKED}; time blocks of 18 steps",
        "2 threads by rows (many), each on its own: 0-4, 5-9; W_ih in place, W_hh in place; "
        "time blocks of 18 steps",
    ),
    # Weights: 4 * 887^2 * 4 bytes are above 12 MiB, 886^2 below.
    ("LSTM", (35, 20, 886, 886), 2): each_on_its_own("0-9, 10-19", 35),
    ("LSTM", (35, 20, 887, 887), 2): (
        f"2 threads by units (large): 0-447, 448-886; {PACKED}; time blocks of 35 steps",
    ),
    # A meeting: 32 units a thread; 4 * 100 * 100 * 1 = 40,000 for two threads.
    ("LSTM", (100, 4, 95, 95), 3): (
        f"3 threads by rows (meetings): 0-1, 2-2, 3-3; {PACKED}; time blocks of 100 steps",
    ),
    ("LSTM", (100, 4, 96, 96), 3): (
        f"3 threads by units (few): 0-31, 32-63, 64-95; {PACKED}; time blocks of 100 steps",
    ),
    ("LSTM", (400, 1, 99, 99), 2): (
        "2 threads by rows (meetings): 0-0, none; W_ih packed, W_hh in place; "
        "time blocks of 400 steps",
    ),
    ("LSTM", (400, 1, 100, 100), 2): (
        "2 threads by units (few): 0-47, 48-99; W_ih packed, W_hh in place; "
        "time blocks of 400 steps",
    ),
    # Packing, transposed, for one product: 0.3 rows for each of the depth, 8 at least, 280 at most;
    ("GRU", (1, 7, 16, 16), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",),
    ("GRU", (1, 8, 16, 16), 1): (
        f"1 thread (alone); {PACKED}; time blocks of 1 step",
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    ("RNN_TANH", (1, 76, 256, 256), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",),
    ("RNN_TANH", (1, 77, 256, 256), 1): (
        f"1 thread (alone); {PACKED}; time blocks of 1 step",
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    ("RNN_TANH", (1, 279, 1024, 1024), 1): (
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    ("RNN_TANH", (1, 280, 1024, 1024), 1): (
        f"1 thread (alone); {PACKED}; time blocks of 1 step",
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    # for several, 0.22 rows for each of the depth, 96 at most.
    ("GRU", (7, 2, 64, 64), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 7 steps",),
    ("GRU", (5, 3, 64, 64), 1): (
        "1 thread (alone); W_ih in place, W_hh packed; time blocks of 5 steps",
        f"1 thread (alone); {IN_PLACE}; time blocks of 5 steps",
    ),
    ("RNN_TANH", (5, 19, 512, 512), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 5 steps",),
    ("RNN_TANH", (6, 16, 512, 512), 1): (
        "1 thread (alone); W_ih in place, W_hh packed; time blocks of 6 steps",
        f"1 thread (alone); {IN_PLACE}; time blocks of 6 steps",
    ),
    # Of 16 MiB and 4 rows at once: 200 * 2 / 16 rows, in either way.
    ("RNN_TANH", (6, 4, 2048, 2048), 1): (f"1 thread (alone); {IN_PLACE}; time blocks of 6 steps",),
    ("RNN_TANH", (7, 4, 2048, 2048), 1): (
        "1 thread (alone); W_ih in place, W_hh packed; time blocks of 7 steps",
    ),
    # One row at a step reads W_hh where it lies.
    ("GRU", (20, 1, 64, 64), 1): (
        "1 thread (alone); W_ih packed, W_hh in place; time blocks of 20 steps",
        f"1 thread (alone); {IN_PLACE}; time blocks of 20 steps",
    ),
    # Its gradient by whole rows, where W_hh is more than two threads' own caches hold, 2 MiB.
    ("LSTM", (35, 1, 362, 362), 2): (
        f"2 threads by units (few): 0-175, 176-361; {IN_PLACE}; time blocks of 35 steps",
    ),
    ("LSTM", (35, 1, 363, 363), 2): (
        f"2 threads by units (few): 0-175, 176-362; {IN_PLACE}; time blocks of 35 steps",
        f"2 threads by units (few): 0-175, 176-362; {IN_PLACE} by depth; time blocks of 35 steps",
    ),
    # Not transposed: 384 rows up to 4 MiB; above, 240 for one product and 96 for several.
    ("RNN_TANH", (1, 383, 1024, 1024), 1): (
        f"1 thread (alone); {PACKED}; time blocks of 1 step",
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    ("RNN_TANH", (1, 384, 1024, 1024), 1): (f"1 thread (alone); {PACKED}; time blocks of 1 step",),
    ("RNN_TANH", (1, 239, 1025, 1025), 1): (
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
    ),
    ("RNN_TANH", (1, 240, 1025, 1025), 1): (
        f"1 thread (alone); {IN_PLACE}; time blocks of 1 step",
        f"1 thread (alone); {PACKED}; time blocks of 1 step",
    ),
    ("RNN_TANH", (5, 19, 1025, 1025), 1): (
        f"1 thread (alone); {IN_PLACE}; time blocks of 5 steps",
    ),
    ("RNN_TANH", (6, 16, 1025, 1025), 1): (
        "1 thread (alone); W_ih in place, W_hh packed; time blocks of 6 steps",
    ),
    # Time blocks: up to 768 rows, of about equal length; a step is not divided.
    ("GRU", (1000, 4, 8, 8), 1): (f"1 thread (alone); {PACKED}; time blocks of 167 steps",),
    ("GRU", (3, 1000, 8, 8), 1): (f"1 thread (alone); {PACKED}; time blocks of 1 step",),
    # More threads than sequences.
    ("GRU", (200, 2, 32, 32), 4): (
        f"4 threads by rows (meetings): 0-0, none, 1-1, none; {PACKED}; time blocks of 200 steps",
    ),
}


def lines(text: str) -> list[str]:
    """The plans of forward and backward, without what stands before them."""
    forward, backward = text.splitlines()
    assert forward.startswith("forward: ")
    assert backward.startswith("backward: ")
    return [line.split(": ", 1)[1] for line in (forward, backward)]


def without_blocks(line: str) -> str:
    return line.split("; time blocks")[0]


@pytest.mark.parametrize("given", TABLE, ids=str)
def test_decisions(given: tuple[str, tuple[int, int, int, int], int]) -> None:
    cell, (T, N, C, H), threads = given
    text = torch.ops.rnnext.plan(
        cell, T, N, C, [H], dtype=torch.float32, threads=threads, caches=CACHES
    )
    (forward, backward), expected = lines(text), TABLE[given]
    assert backward == expected[-1]
    assert without_blocks(forward) == without_blocks(expected[0])


# cell, (T, N, C, H), threads -> steps in a time block of the forward.
# The edges: 128 rows a thread, in blocks of equal length, where W_ih takes 4 MiB or less.
BLOCKS = {
    ("LSTM", (35, 64, 256, 256), 1): 2,
    ("LSTM", (35, 64, 256, 256), 2): 4,
    ("LSTM", (36, 64, 256, 256), 2): 4,
    ("LSTM", (37, 64, 256, 256), 2): 4,
    ("LSTM", (128, 1, 64, 64), 1): 128,
    ("LSTM", (129, 1, 64, 64), 1): 65,
    ("LSTM", (35, 20, 512, 512), 2): 12,
    ("LSTM", (35, 20, 513, 512), 2): 35,
    ("GRU", (3, 1000, 8, 8), 2): 1,
    ("GRU", (2000, 1, 8, 8), 64): 667,  # no more than the backward's
}


@pytest.mark.parametrize("given", BLOCKS, ids=str)
def test_blocks_of_the_forward(given: tuple[str, tuple[int, int, int, int], int]) -> None:
    cell, (T, N, C, H), threads = given
    text = torch.ops.rnnext.plan(
        cell, T, N, C, [H], dtype=torch.float32, threads=threads, caches=CACHES
    )
    steps = f"{BLOCKS[given]} step" + "s" * (BLOCKS[given] > 1)
    assert lines(text)[0].endswith(f"; time blocks of {steps}")


def test_rows_that_begin_at_zero_do_not_count_towards_packing_W_hh() -> None:
    # One row is multiplied for all that begin; there is no gradient of what they begin at.
    for T, N, forward, backward in ((1, 100, 0, 0), (2, 63, 1, 0), (2, 383, 1, 0), (2, 384, 1, 1)):
        text = torch.ops.rnnext.plan(
            *("GRU", T, N, 64, [64]), dtype=torch.float32, threads=1, caches=CACHES, at_zero=True
        )
        for line, packed in zip(lines(text), (forward, backward), strict=True):
            assert ("W_hh packed" if packed else "W_hh in place") in line, (T, N)


# cell, (T, N, C, H), threads -> whether the directions of a layer go side by side.
# The edges: 350,000 multiply-adds of each where 700,000 are a team's; one sequence, or two threads;
# 512 KiB of W_hh where the threads would meet at each step.
SIDE_BY_SIDE = {
    ("RNN_TANH", (1, 688, 2, 2), 2): False,
    ("RNN_TANH", (1, 689, 2, 2), 2): True,
    ("RNN_TANH", (1, 689, 2, 2), 1): False,
    ("LSTM", (100, 1, 63, 63), 2): True,
    ("LSTM", (100, 1, 63, 63), 8): True,
    ("LSTM", (100, 2, 63, 63), 3): False,
    ("LSTM", (100, 5, 63, 63), 2): True,
    ("LSTM", (100, 6, 63, 63), 2): False,
    ("LSTM", (100, 1, 181, 181), 2): True,
    ("LSTM", (100, 1, 182, 182), 2): False,
    ("LSTM", (100, 1, 128, 128), 3): False,
}


@pytest.mark.parametrize("given", SIDE_BY_SIDE, ids=str)
def test_directions_side_by_side(given: tuple[str, tuple[int, int, int, int], int]) -> None:
    cell, (T, N, C, H), threads = given
    text = torch.ops.rnnext.plan(
        cell, T, N, C, [H], dtype=torch.float32, threads=threads, bidirectional=True, caches=CACHES
    )
    apart = [line.startswith("directions side by side, each 1 thread") for line in lines(text)]
    assert apart == [SIDE_BY_SIDE[given]] * 2
    layer = rnnext.GRU(40, 40, bidirectional=True, checkpoint_every=10)
    assert plan(layer, 100, 1, threads=2).count("side by side") == 1  # forward
    layer.checkpoint_every = 0
    assert plan(layer, 100, 1, threads=2).count("side by side") == 2


# cell, (T, N, C, H), layers, threads -> whether the layers of a stack go side by side.
# The edges: as for directions; and of two layers three time blocks of 24 rows, of three on two
# threads seven.
LAYERS = {
    ("LSTM", (70, 1, 63, 63), 2, 2): True,
    ("LSTM", (48, 1, 63, 63), 2, 2): False,
    ("LSTM", (49, 1, 63, 63), 2, 2): True,
    ("LSTM", (144, 1, 63, 63), 3, 2): False,
    ("LSTM", (145, 1, 63, 63), 3, 2): True,
    ("LSTM", (144, 1, 63, 63), 3, 3): True,
    ("LSTM", (100, 1, 63, 63), 1, 2): False,
    ("LSTM", (100, 1, 63, 63), 2, 1): False,
    ("LSTM", (100, 5, 63, 63), 2, 2): True,
    ("LSTM", (100, 6, 63, 63), 2, 2): False,
    ("LSTM", (100, 2, 63, 63), 2, 3): False,
    ("LSTM", (100, 2, 63, 63), 3, 3): True,
    ("LSTM", (100, 1, 181, 181), 2, 2): True,
    ("LSTM", (100, 1, 182, 182), 2, 2): False,
    # The same for all layers, though the input of the first one is wider.
    ("LSTM", (100, 1, 4000, 63), 2, 2): True,
}


@pytest.mark.parametrize("given", LAYERS, ids=str)
def test_layers_side_by_side(given: tuple[str, tuple[int, int, int, int], int, int]) -> None:
    cell, (T, N, C, H), layers, threads = given
    text = torch.ops.rnnext.plan(
        cell,
        T,
        N,
        C,
        [H],
        dtype=torch.float32,
        threads=threads,
        num_layers=layers,
        caches=CACHES,
    )
    apart = [line.startswith("layers side by side, each 1 thread") for line in lines(text)]
    assert apart == [LAYERS[given]] * 2


def test_blocks_of_layers_side_by_side() -> None:
    layer = rnnext.GRU(40, 40, 2)
    assert plan(layer, 100, 1, threads=2).count("time blocks of 20 steps") == 4
    assert plan(layer, 800, 1, threads=2).count("time blocks of 100 steps") == 4
    assert plan(layer, 20_000, 1, threads=2).count("time blocks of 741 steps") == 4
    layer.checkpoint_every = 10
    text = plan(layer, 800, 1, threads=2)
    assert text.count("side by side") == 2  # forward
    assert text.count("time blocks of 100 steps") == 4


def test_caches_are_two_sizes() -> None:
    sizes = ("LSTM", 10, 20, 8, [700])
    with pytest.raises(RuntimeError, match="caches has 1 sizes, expected 2"):
        torch.ops.rnnext.plan(*sizes, dtype=torch.float32, caches=[1 << 20])
    own = [
        lines(torch.ops.rnnext.plan(*sizes, dtype=torch.float32, threads=2, caches=(1 << 20, most)))
        for most in (16 << 20, 32 << 20)
    ]
    assert "by units (large)" in own[0][0]
    assert "by rows (many)" in own[1][0]


def test_float64_weights_are_twice_as_large() -> None:
    sizes = ("LSTM", 10, 20, 8, [700])
    kinds = [
        lines(torch.ops.rnnext.plan(*sizes, dtype=dtype, threads=2, caches=CACHES))[0].split(":")[0]
        for dtype in (torch.float32, torch.float64)
    ]
    assert kinds == [
        "2 threads by rows (many), each on its own",
        "2 threads by units (large)",
    ]


def test_lengths_share_out_steps_not_sequences() -> None:
    layer = rnnext.LSTM(64, 64)
    own = "by rows (many), each on its own"
    assert f"{own}: 0-0, 1-9;" in plan(layer, 90, 10, [90] + [10] * 9, threads=2)
    assert f"{own}: 0-4, 5-9;" in plan(layer, 90, 10, [90] * 10, threads=2)
    assert "by rows (many): 0-0, 1-9;" in plan(layer, 90, 10, [90] + [5] * 9, threads=2)
    assert plan(layer, 90, 10, [90] * 10, 2) == plan(layer, 90, 10, threads=2)
    # Steps that no sequence has do not count.
    assert plan(layer, 90, 10, torch.full((10,), 7)) == plan(layer, 7, 10)


def test_lengths_of_one_are_like_padded_ones_for_any_threads() -> None:
    """The padded shares are computed directly, the packed ones by counting."""
    layer = rnnext.GRU(64, 40)
    for threads in (1, 2, 3, 5, 8):
        for T, N in ((5, 41), (1, 64), (7, 97), (50, 40)):
            assert plan(layer, T, N, [T] * N, threads) == plan(layer, T, N, threads=threads)


def test_bfloat16() -> None:
    x = torch.randn(20, 8, 64)
    half: Any = {"dtype": torch.bfloat16}
    sizes = dict.fromkeys(ZOO["Everything"]._default.sizes, 5)
    layers = (
        rnnext.LSTM(64, 64, **half),
        rnnext.GRU(64, 63, **half),
        ZOO["Everything"](64, 63, **half, **sizes),
    )
    even, odd, apart = (plan(layer, 20, 8, threads=1) for layer in layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert plan(rnnext.LSTM(64, 64), 20, 8, threads=1) == even
    layers[0](x.bfloat16())
    if "bfloat16" not in even:
        assert PACKED in even  # the processor does not multiply bfloat16
        return
    assert even.count("W_ih packed in bfloat16, W_hh packed in bfloat16") == 2
    assert odd == even
    # In the backward, the gates that are apart would begin at row 63 of W_hh.
    assert "W_ih packed in bfloat16, W_hh packed in bfloat16" in apart.splitlines()[0]
    assert "W_ih packed in bfloat16, W_hh in place, " in apart.splitlines()[1]
    both, hidden = "W_ih packed in bfloat16, W_hh packed in bfloat16", "W_hh packed in bfloat16"
    for rows, forward, backward in (
        *((14, IN_PLACE, IN_PLACE), (15, f"W_ih in place, {hidden}", IN_PLACE)),
        *((20, both, IN_PLACE), (23, both, IN_PLACE), (24, both, both)),
    ):
        text = torch.ops.rnnext.plan(
            *("LSTM", rows, 1, 64, [64]),
            dtype=torch.float32,
            operand_dtype=torch.bfloat16,
            threads=1,
            caches=CACHES,
        )
        for line, expected in zip(lines(text), (forward, backward), strict=True):
            assert expected in line, rows
    assert "bfloat16" not in plan(rnnext.LSTM(64, 64, dtype=torch.float16), 20, 8)


def test_stacks() -> None:
    layer = rnnext.LSTM(8, 64, num_layers=2, bidirectional=True, proj_size=16)
    text = plan(layer, 3, 20, threads=2)
    assert [line.split(":")[0] for line in text.splitlines()] == [
        *("layer 0, forward", "layer 0, backward", "layer 1, forward", "layer 1, backward")
    ]
    assert "other matrices packed" in text  # W_hr
    # What a layer reads counts: C = 2 is too little for a team, 30 is not.
    layers = plan(rnnext.RNN(2, 30, num_layers=2), 20, 20, threads=2)
    assert ["1 thread (small)" in line for line in layers.splitlines()] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_written_cells(name: str) -> None:
    cell = ZOO[name]
    layer = cell(6, 8, **dict.fromkeys(cell._default.sizes, 5))
    text = plan(layer, 50, 20, threads=2)
    assert ("W_hh" in text) == any("weight_hh" in n for n, _ in layer.named_parameters())
    assert "time blocks of 25 steps" in text


def test_threads_are_torchs(threads: None) -> None:
    layer = rnnext.LSTM(64, 64)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert plan(layer, 50, 20) == plan(layer, 50, 20, threads=count)


FORK = """
import os, torch, rnnext
torch.set_num_threads(2)
layer = rnnext.LSTM(64, 64)
assert "2 threads" in rnnext.plan(layer, 50, 20)
pid = os.fork()
if pid == 0:
    os._exit("1 thread (alone)" not in rnnext.plan(layer, 50, 20))
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_forked_process_has_one_thread() -> None:
    result = run_python(FORK)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_results_are_right_by_every_plan(count: int, threads: None) -> None:
    torch.set_num_threads(count)
    for case in (Case(T=4, N=3, C=20, H=170), Case(T=9, N=21, C=5, H=64, lengths=(9, *[2] * 20))):
        data = Data("LSTM", case)
        expected, result = data.reference(), data.run(ops.rnn, torch.float64)
        for name in data.names:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-9, atol=1e-9)


LAYER = rnnext.LSTM(3, 4)
WRONG: dict[str, tuple[Callable[[], str], type[Exception], str]] = {
    "torch's layer": (
        lambda: plan(torch.nn.LSTM(3, 4), 1, 1),  # type: ignore[arg-type]
        *(TypeError, "torch.nn.modules.rnn.LSTM, expected a layer of rnnext.*rnnext.swap"),
    ),
    "a cell": (
        lambda: plan(rnnext.LSTMCell(3, 4), 1, 1),  # type: ignore[arg-type]
        *(TypeError, "LSTMCell, expected a layer"),
    ),
    "T": (lambda: plan(LAYER, 0, 1), RuntimeError, "T is 0, expected 1 to 2147483647"),
    "N": (lambda: plan(LAYER, 1, -1), RuntimeError, "N is -1, expected 1"),
    "huge T": (lambda: plan(LAYER, 2**40, 1), RuntimeError, "T is 1099511627776, expected 1"),
    "threads": (
        lambda: plan(LAYER, 1, 1, threads=0),
        *(RuntimeError, "threads is 0, expected 1 to 65536"),
    ),
    "lengths": (lambda: plan(LAYER, 1, 2, [1]), ValueError, "one entry for each of 2 rows"),
    "a length": (lambda: plan(LAYER, 2, 1, [3]), ValueError, r"lengths\[0\] is 3"),
    "lengths of floats": (
        lambda: plan(LAYER, 2, 1, torch.ones(1)),
        *(TypeError, "lengths must be integers"),
    ),
    "device": (
        lambda: plan(rnnext.LSTM(3, 4, device="meta"), 1, 1),
        *(ValueError, "the kernels, but they do not run torch.float32 on meta: move"),
    ),
    "dtype": (
        lambda: plan(rnnext.LSTM(3, 4).to(torch.complex64), 1, 1),
        *(ValueError, "the kernels, but they do not run torch.complex64 on cpu"),
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_errors(what: str) -> None:
    call, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        call()


OP: dict[str, tuple[dict[str, object], str]] = {
    "cell": ({"cell": "LSTN"}, "no cell is called 'LSTN'"),
    "no sizes": ({"sizes": []}, "0 sizes given, but LSTM has 1"),
    "size": ({"sizes": [2**62]}, "a size of LSTM is 4611686018427387904"),
    "C": ({"C": 0}, "C is 0, expected 1"),
    "heads": ({"heads": 3}, "heads is 3, expected 1 or a divisor of the hidden size 4"),
    "no heads": ({"heads": 0}, "heads is 0, expected 1 or a divisor"),
    "dtype": ({"dtype": torch.int64}, "dtype is Long, expected float32 or float64"),
    "batch_sizes": (
        {"batch_sizes": torch.tensor([2, 1])},
        "batch_sizes has 2 steps and begins with 2, but T is 3 and N is 2",
    ),
    "more rows": (
        {"batch_sizes": torch.tensor([5, 1, 1])},
        "batch_sizes has 3 steps and begins with 5, but T is 3 and N is 2",
    ),
    "batch_sizes that grow": ({"batch_sizes": torch.tensor([1, 2, 1])}, "never increase"),
    "no steps": ({"batch_sizes": torch.tensor([0, 0, 0])}, "must begin above 0"),
    "empty": (
        {"batch_sizes": torch.tensor([], dtype=torch.int64)},
        "batch_sizes has 0 steps",
    ),
}


@pytest.mark.parametrize("what", OP)
def test_errors_of_the_op(what: str) -> None:
    good = {"cell": "LSTM", "T": 3, "N": 2, "C": 3, "sizes": [4], "dtype": torch.float32}
    change, message = OP[what]
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.rnnext.plan(**{**good, **change})


def test_sizes_beyond_all_memory_do_not_overflow() -> None:
    most = 2**31 - 1
    text = torch.ops.rnnext.plan("LSTM", most, most, most, [most], dtype=torch.float64, threads=3)
    assert "3 threads by units (large)" in text
    text = torch.ops.rnnext.plan("LSTM", most, most, 1, [1], dtype=torch.float64, threads=3)
    parts = "0-715827882, 715827883-1431655764, 1431655765-2147483646"
    assert f"(many), each on its own: {parts};" in text
