"""Time the ways that a scan can go on a GPU, beside what the planner expects of them.

    python benchmarks/gpu/paths.py                    # a minute: results/<device>-paths.json
    python benchmarks/gpu/paths.py --shapes 35,20,650 --maths bf16 --out /tmp/paths.json

Each row is a layer's forward pass, or forward and backward, with RNNEXT_CUDA_PATH forced, out of a
CUDA graph: microseconds a step, and the planner's words and cycles. What is wrong against float64
is not timed: it is listed, and the exit status is 1. The choice is good where the way that `auto`
takes is the fastest of its row.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(1, str(Path(__file__).parents[1]))  # what all benchmarks share

import torch
from cuda_timing import Bursts, captured, tf32
from gpu_floor import DTYPES
from gpu_targets import ERRORS
from grid import CELLS, MATHS
from layers import about, default_path, write
from peers import MODES, Problem, Shape, WrongResult, shape_of, worst_error
from timing import Clock, in_turn, wall

import rnnext

WAYS = ("auto", "steps", "grid", "cluster")
FORCED = "RNNEXT_CUDA_PATH"
SHAPES = [
    *(Shape(200, N, H) for H in (64, 128, 200, 256, 512) for N in (1, 20, 128)),
    *(Shape(100, N, H) for H in (650, 768, 1024, 1500) for N in (1, 20, 64, 128)),
]


def measure(cell: str, math: str, shape: Shape, mode: str, clock: Clock, seconds: float) -> Any:
    """A row; of a way that can't be taken, its words alone.

    Raises:
        WrongResult: a way's error against float64 is above the bound of its math.
    """
    device = torch.device("cuda" if clock is not wall else "cpu")
    problem = Problem(cell, shape, DTYPES[math], device)
    layer = getattr(rnnext, cell)(shape.H, shape.H).to(device, DTYPES[math])
    exact = problem.exact(mode)
    steps, expected, notes, errors = {}, {}, {}, {}
    for way in WAYS:
        step = problem.step(mode, "rnnext")
        with mock.patch.dict(os.environ, {FORCED: way}):
            try:
                plan = rnnext.plan(layer, shape.T, shape.N).splitlines()
                results = step()
                steps[way] = captured(step) if clock is not wall else step
            except RuntimeError as error:
                notes[way] = str(error).splitlines()[0]
                continue
        errors[way] = worst_error(results, exact)
        if not errors[way] <= ERRORS[math]:
            raise WrongResult(
                f"{cell} {shape} {math} {mode}: the error of {way} against float64 is "
                f"{errors[way]:.1e}, expected {ERRORS[math]:.1e} or less"
            )
        passes = plan if mode == "training" else plan[:1]
        expected[way] = {
            "plan": passes,
            "cycles": sum(int(n) for n in re.findall(r"(\d+) cycles a step", "".join(passes))),
        }
    times = in_turn(steps, seconds, rounds=3, clock=clock)
    return {
        "cell": cell,
        "math": math,
        "shape": str(shape),
        "mode": mode,
        "microseconds_a_step": {
            way: 1e6 * statistics.median(values) / shape.T for way, values in times.items()
        },
        "expected": expected,
        "errors": errors,
        "notes": notes,
    }


def run(options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    """Measure the rows that there is time for; each is in the file as soon as it is measured."""
    clock: Clock = Bursts() if options.device == "cuda" else wall
    result: dict[str, Any] = {"about": about(torch.device(options.device)), "rows": []}
    result["refused"] = []
    end = time.monotonic() + 60 * options.minutes
    for row in product(options.shapes, options.maths, options.cells, options.modes):
        if time.monotonic() > end:
            break
        shape, math, cell, mode = row
        try:
            with tf32(math == "tf32"):
                found = measure(cell, math, shape, mode, clock, options.seconds)
        except WrongResult as error:
            result["refused"].append(str(error))
            print(f"not timed: {error}", file=sys.stderr, flush=True)
            continue
        result["rows"].append(found)
        if out:
            write(result, out)
        times = found["microseconds_a_step"].items()
        told = ", ".join(f"{way} {value:.2f}" for way, value in times)
        print(f"{cell} {shape} {math} {mode}: {told} us a step", flush=True)
    return result


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
    usual = default_path(options.device)
    out = options.out or (usual and usual.with_name(f"{usual.stem}-paths.json"))
    result = run(options, out)
    if out:
        print(f"written: {out}")
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
