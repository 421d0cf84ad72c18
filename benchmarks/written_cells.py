"""Time cells written in Python: our kernels, the loop in PyTorch, the loop compiled by torch.

    python benchmarks/written_cells.py --out benchmarks/results/written_cells.json

All run in turn in one process, and the ratios are those of the medians. "built-in" is the same cell
among the hand-written ones, "loop" is rnnext.reference (plain PyTorch, the input's product made
once for all steps), "compiled step" the same loop around a step compiled by torch.compile, and
"compiled loop" torch.compile of all of it, which unrolls the steps and takes long to compile: it
is tried once. These two are timed in training alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from machine import about
from peers import Shape
from timing import in_turn
from written import BUILT_IN, CELLS, LSTM, SHAPES, Written

UNROLLED = SHAPES[0]
DOUBLE_BACKWARD = (Shape(35, 20, 200), Shape(200, 32, 128))


def row(cell: type, shape: Shape, mode: str, times: dict[str, list[float]]) -> dict[str, Any]:
    medians = {impl: statistics.median(values) for impl, values in times.items()}
    return {
        "cell": cell.__name__,
        "shape": str(shape),
        "mode": mode,
        "milliseconds": {impl: 1e3 * value for impl, value in medians.items()},
        "kernel_over": {
            impl: value / medians["kernel"] for impl, value in medians.items() if impl != "kernel"
        },
        "rounds": len(times["kernel"]),
    }


def passes(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for cell in CELLS:
        for shape in SHAPES:
            problem = Written(cell, shape)
            for mode in ("training", "inference"):
                impls = ["kernel", "loop"] + ["built-in"] * (cell in BUILT_IN)
                if options.compile and mode == "training":
                    impls += ["compiled step"]
                    impls += ["compiled loop"] * ((cell, shape) == (LSTM, UNROLLED))
                torch._dynamo.reset()
                errors = problem.check(mode, impls)
                steps = {impl: problem.step(mode, impl) for impl in impls}
                times = in_turn(steps, options.seconds, options.rounds)
                rows.append({**row(cell, shape, mode, times), "errors": errors})
                show(rows[-1])
    return rows


def double_backward(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for cell in CELLS:
        for shape in DOUBLE_BACKWARD:
            problem = Written(cell, shape)
            impls = ["kernel", "loop"]
            steps = {impl: problem.double_backward(impl) for impl in impls}
            results = [step() for step in steps.values()]
            for a, b in zip(*results, strict=True):
                if a is not None and b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())
            times = in_turn(steps, options.seconds, options.rounds)
            memory = {impl: peak_megabytes(cell.__name__, shape, impl) for impl in impls}
            rows.append({**row(cell, shape, "double backward", times), "peak_megabytes": memory})
            show(rows[-1])
    return rows


def peak_megabytes(cell: str, shape: Shape, impl: str) -> float:
    """What a gradient penalty adds to the memory of a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (cell, shape, impl))


def _peak(name: str, shape: Shape, impl: str) -> float:
    torch.set_num_threads(2)
    cell = next(c for c in CELLS if c.__name__ == name)
    Written(cell, Shape(2, shape.N, shape.H)).double_backward(impl)()  # load everything
    step = Written(cell, shape).double_backward(impl)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """Kilobytes of this process in memory: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


START = """
import time, torch, rnnext
x = torch.randn(2, 2, 8)
start = time.perf_counter()
import cell
cell.{cell}(8, 8)(x)
print(time.perf_counter() - start)
"""
CELL_FILE = """
import rnnext, torch
from torch.nn.functional import layer_norm, linear

{source}
"""


def builds(repeats: int) -> list[dict[str, Any]]:
    """Seconds from the definition of a cell to its first result, each time in a fresh process."""
    rows = []
    for cell in CELLS:
        code = START.format(cell=cell.__name__)
        seconds: dict[str, list[float]] = {"first": [], "cached": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                source = CELL_FILE.format(source=inspect.getsource(cell))
                Path(cache, "cell.py").write_text(source)
                for kind in seconds:
                    environment = {
                        **os.environ,
                        "RNNEXT_CACHE": cache,
                        "PYTHONPATH": os.pathsep.join([cache, *sys.path]),
                    }
                    command = [sys.executable, "-c", code]
                    output = subprocess.run(
                        command, env=environment, capture_output=True, text=True, check=True
                    ).stdout
                    seconds[kind].append(float(output))
        rows.append(
            {
                "cell": cell.__name__,
                **{f"{kind}_seconds": statistics.median(s) for kind, s in seconds.items()},
            }
        )
        print(rows[-1], flush=True)
    return rows


def show(entry: dict[str, Any]) -> None:
    over = ", ".join(f"{impl} {ratio:.2f}" for impl, ratio in entry["kernel_over"].items())
    memory = entry.get("peak_megabytes", "")
    print(
        f"{entry['cell']:17} {entry['mode']:15} {entry['shape']:15} "
        f"{entry['milliseconds']['kernel']:8.2f} ms; times slower: {over} {memory}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each set of peers")
    parser.add_argument("--rounds", type=int, default=5, help="at least, of each")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*TensorFloat32")
    result = {
        "about": about(),
        "passes": passes(options),
        "double_backward": double_backward(options),
        "builds": builds(3),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
