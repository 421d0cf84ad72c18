"""Time rnnext's layers against torch.nn's and a loop in PyTorch; write a result file and a report.

    python benchmarks/compare.py --out benchmarks/results/cpu.json
    python benchmarks/compare.py --dtypes float32 bfloat16 --threads 1 2 --out ...
    python benchmarks/compare.py --shapes 35,20,650 100,1,512,L2 --cells GRU --seconds 0.5
    python benchmarks/compare.py --show benchmarks/results/cpu.json
    python benchmarks/compare.py --report benchmarks/results/cpu.json

All are run in turn in one process, A B C C B A ..., and a ratio is that of the medians. Beside it
stand the errors against float64, and the floor: what the processor takes at least, as probes
measure it in the same run. Absolute times depend on the machine and on what else it is doing;
ratios hold better. What is wrong is not timed: it is listed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import probes
import report
import torch
from machine import about
from peers import CELLS, IMPLS, MODES, SHAPES, Problem, Shape, WrongResult, check, shape_of
from roofline import BYTES, GATES, Machine, floor, products
from timing import in_turn, wall

LOOP_SECONDS = 2.0  # of one pass of the loop in PyTorch: where it takes longer, it is left out


def measure(
    cell: str, mode: str, shape: Shape, dtype: str, machine: Machine, seconds: float, rounds: int
) -> dict[str, Any]:
    """One row of the result.

    Raises:
        WrongResult: what `check` raises.
    """
    problem = Problem(cell, shape, getattr(torch, dtype))
    loop = ["loop"] if wall(problem.step(mode, "loop")) < LOOP_SECONDS else []
    errors = check(problem, mode, [*IMPLS, *loop])
    steps = {impl: problem.step(mode, impl) for impl in [*IMPLS, *loop]}
    if shape.packed:
        padded = dataclasses.replace(shape, packed=False)
        steps["padded"] = Problem(cell, padded, problem.dtype).step(mode, "rnnext")
    if dtype != "float32":
        steps["float32"] = Problem(cell, shape).step(mode, "rnnext")
    before = probes.apart(machine.threads)
    times = in_turn(steps, seconds, rounds, guests=loop)
    apart = before, probes.apart(machine.threads)
    medians = {name: statistics.median(values) for name, values in times.items()}
    least = floor(machine, cell, mode, shape, dtype)
    return {
        "cell": cell,
        "mode": mode,
        "dtype": dtype,
        "threads": machine.threads,
        "shape": str(shape),
        **dataclasses.asdict(shape),
        "ratio": medians["torch"] / medians["rnnext"],
        "ratio_of_minima": min(times["torch"]) / min(times["rnnext"]),
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "gflops_per_second": products(GATES[cell], mode, shape) / medians["rnnext"] / 1e9,
        "floor_milliseconds": {k: 1e3 * v for k, v in dataclasses.asdict(least).items()},
        "bound": least.bound,
        "fraction": least.seconds / medians["rnnext"],
        "errors": errors,
        "large_set_gigabytes": apart,
        "rounds": {name: len(values) for name, values in times.items()},
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole grid."""
    machines, rows, refused = [], [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        machine = probes.measure(threads)
        machines.append(dataclasses.asdict(machine))
        grid = itertools.product(options.dtypes, options.cells, options.modes, options.shapes)
        for dtype, cell, mode, shape in grid:
            try:
                row = measure(cell, mode, shape, dtype, machine, options.seconds, options.rounds)
            except WrongResult as wrong:
                refused.append(f"{threads} threads: {wrong}")
                print(f"not timed: {refused[-1]}", file=sys.stderr, flush=True)
                continue
            rows.append(row)
            print(
                f"{threads} {dtype:8} {cell:4} {mode:9} {row['shape']:23} {row['ratio']:6.2f}x "
                f"torch.nn, {row['fraction']:4.0%} of what {row['bound']} allow",
                flush=True,
            )
    facts = {**about(), "threads": options.threads}
    return {"about": facts, "machines": machines, "rows": rows, "refused": refused}


def read(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    if "machines" not in result:
        raise SystemExit(f"{path} has no probes of the machine: measure again, with --out {path}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="write the result file here, and its report beside it")
    add("--show", type=Path, help="print a result file's short tables, and measure nothing")
    add("--report", type=Path, help="write a result file's report, .md and .png, beside it")
    add("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    add("--modes", nargs="+", default=list(MODES), choices=MODES)
    add("--dtypes", nargs="+", default=["float32"], choices=BYTES)
    add("--threads", nargs="+", type=int, default=[2])
    add("--shapes", nargs="+", type=shape_of, default=list(SHAPES), help="T,N,H[,L2][,D2][,packed]")
    add("--seconds", type=float, default=1.5, help="for each row")
    add("--rounds", type=int, default=5, help="of each row, at least")
    options = parser.parse_args()
    if options.show:
        print(report.short(read(options.show)))
        return 0
    if options.report:
        report.write(read(options.report), options.report)
        return 0
    result = run(options)
    print(report.short(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        report.write(result, options.out)
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
