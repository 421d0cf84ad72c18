"""Time rnnext's layers against torch.nn's, interleaved in one process, and write a result file.

    python benchmarks/compare.py --out benchmarks/results/cpu.json
    python benchmarks/compare.py --show benchmarks/results/cpu.json

Each pair is run in turn, A B A B ..., and the ratio is that of the medians; the error stands
beside it. Absolute times depend on the machine and on what else it is doing; ratios hold better.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from machine import about
from peers import CELLS, IMPLS, SHAPES, Problem, Shape, check
from timing import in_turn

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def operations(cell: str, mode: str, problem: Problem) -> float:
    """Floating-point work of the products: two for each weight and row, thrice in training."""
    rows = problem.dy.numel() / problem.dy.shape[-1]
    shape = problem.shape
    inputs = [shape.H] + [shape.D * shape.H] * (shape.L - 1)
    weights = sum(shape.D * GATES[cell] * shape.H * (columns + shape.H) for columns in inputs)
    return 2.0 * rows * weights * (3 if mode == "training" else 1)


def measure(cell: str, mode: str, shape: Shape, seconds: float, rounds: int) -> dict[str, Any]:
    problem = Problem(cell, shape)
    errors = check(problem, mode)
    times = in_turn({impl: problem.step(mode, impl) for impl in IMPLS}, seconds, rounds)
    medians = {impl: statistics.median(values) for impl, values in times.items()}
    return {
        "cell": cell,
        "mode": mode,
        "shape": str(shape),
        "ratio": medians["torch"] / medians["rnnext"],
        "ratio_of_minima": min(times["torch"]) / min(times["rnnext"]),
        "milliseconds": {impl: 1e3 * value for impl, value in medians.items()},
        "gflops_per_second": operations(cell, mode, problem) / medians["rnnext"] / 1e9,
        "errors": errors,
        "rounds": len(times["rnnext"]),
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: times in milliseconds, ratios over torch.nn."""
    facts = result["about"]
    lines = [
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"{facts['date']}; float32; errors are against float64.",
        "",
        "| layer | mode | shape | torch.nn ms | rnnext ms | ratio | rnnext GFLOP/s "
        "| torch.nn error | rnnext error |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        ms, errors = row["milliseconds"], row["errors"]
        lines.append(
            f"| {row['cell']} | {row['mode']} | {row['shape']} | {ms['torch']:.3f} "
            f"| {ms['rnnext']:.3f} | {row['ratio']:.2f} | {row['gflops_per_second']:.0f} "
            f"| {errors['torch']:.0e} | {errors['rnnext']:.0e} |"
        )
    lines += [
        "",
        "| layer | mode | geometric mean of the ratios | lowest | highest |",
        "|---|---|--:|--:|--:|",
    ]
    for cell in CELLS:
        for mode in ("training", "inference"):
            ratios = [r["ratio"] for r in result["rows"] if (r["cell"], r["mode"]) == (cell, mode)]
            if ratios:
                lines.append(
                    f"| {cell} | {mode} | {geometric_mean(ratios):.2f} | {min(ratios):.2f} "
                    f"| {max(ratios):.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument(
        "--show", type=Path, help="print a result file as tables, and measure nothing"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each pair")
    parser.add_argument("--rounds", type=int, default=7, help="at least, of each pair")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text())))
        return

    torch.set_num_threads(options.threads)
    rows = []
    for cell in options.cells:
        for mode in ("training", "inference"):
            for shape in SHAPES:
                row = measure(cell, mode, shape, options.seconds, options.rounds)
                rows.append(row)
                print(f"{cell:4} {mode:9} {row['shape']:20} {row['ratio']:6.2f}x", flush=True)
    result = {"about": about(), "rows": rows}
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
