"""Time the ways that a scan can go on a GPU, beside what the planner expects of them.

    python benchmarks/gpu/paths.py                    # a minute: results/<device>-paths.json
    python benchmarks/gpu/paths.py --shapes 35,20,650 --maths bf16 --out /tmp/paths.json

Each row is a layer's forward pass, or forward and backward, with RNNEXT_CUDA_PATH forced, out of a
CUDA graph where it can be captured: microseconds a step, the planner's cycles, and its words. The
choice is good where the way that `auto` takes is the fastest of its row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))  # what all benchmarks share

import torch
from cuda_timing import Bursts, captured, tf32
from gpu_floor import DTYPES
from grid import CELLS, MATHS
from layers import about, default_path
from peers import MODES, Problem, Shape, shape_of
from timing import Clock, in_turn, wall

import rnnext

WAYS = ("auto", "steps", "grid", "cluster")
FORCED = "RNNEXT_CUDA_PATH"
SHAPES = [
    *(Shape(200, N, H) for H in (64, 128, 200, 256, 512) for N in (1, 20, 128)),
    *(Shape(100, N, H) for H in (650, 768, 1024, 1500) for N in (1, 20, 64, 128)),
]


def measure(cell: str, math: str, shape: Shape, mode: str, clock: Clock, seconds: float) -> Any:
    """A row; of a way that can't be taken, its words alone."""
    device = torch.device("cuda" if clock is not wall else "cpu")
    problem = Problem(cell, shape, DTYPES[math], device)
    layer = getattr(rnnext, cell)(shape.H, shape.H).to(device, DTYPES[math])
    steps, words, notes = {}, {}, {}
    for way in WAYS:
        os.environ[FORCED] = way
        step = problem.step(mode, "rnnext")
        try:
            words[way] = rnnext.plan(layer, shape.T, shape.N)
            step()
            steps[way] = captured(step) if clock is not wall else step
        except RuntimeError as error:
            notes[way] = str(error).splitlines()[0]
    os.environ.pop(FORCED)
    times = in_turn(steps, seconds, rounds=3, clock=clock)
    expected = {
        way: sum(int(n) for n in re.findall(r"(\d+) cycles a step", words[way])) for way in times
    }
    return {
        "cell": cell,
        "math": math,
        "shape": str(shape),
        "mode": mode,
        "microseconds_a_step": {
            way: 1e6 * statistics.median(values) / shape.T for way, values in times.items()
        },
        "expected_cycles_of_both_passes": expected,
        "plans": words,
        "notes": notes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="the result file")
    add("--minutes", type=float, default=1.0, help="no row begins after so many")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script itself")
    add("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    add("--maths", nargs="+", default=["bf16", "fp32"], choices=MATHS)
    add("--modes", nargs="+", default=list(MODES), choices=MODES)
    add("--shapes", nargs="+", type=shape_of, default=SHAPES, help="T,N,H")
    add("--seconds", type=float, default=0.1, help="for each row")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured", file=sys.stderr)
        return 2
    clock: Clock = Bursts() if options.device == "cuda" else wall
    usual = default_path(options.device)
    out = options.out or (usual and usual.with_name(f"{usual.stem}-paths.json"))
    rows: list[Any] = []
    begin = time.monotonic()
    for shape in options.shapes:
        for math in options.maths:
            for cell in options.cells:
                for mode in options.modes:
                    if time.monotonic() - begin > 60 * options.minutes:
                        continue
                    with tf32(math == "tf32"):
                        row = measure(cell, math, shape, mode, clock, options.seconds)
                    rows.append(row)
                    found = ", ".join(
                        f"{way} {value:.2f}" for way, value in row["microseconds_a_step"].items()
                    )
                    print(f"{cell} {shape} {math} {mode}: {found} us a step", flush=True)
    if out:
        facts = about(torch.device(options.device))
        out.write_text(json.dumps({"about": facts, "rows": rows}, indent=1) + "\n")
        print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
