"""Where the processor's time goes while a layer runs: a profile of rnnext's kernels by Linux perf.

    python benchmarks/where.py --out benchmarks/results/where.json
    python benchmarks/where.py --shapes 35,20,650 --cells GRU --modes inference

Of what the threads had, shares: in products of matrices, elementwise work, packing and transposing,
and all else, which is waiting, Python, autograd, allocation. Products are also held against the
peak of multiply-adds that probes.py measures: what they reach while they run. Between a layer's
calls there is nothing, so that its own time shows; beside torch.nn's, compare.py times it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import probes
import torch
from machine import versions
from peers import MODES, Problem, Shape, shape_of
from roofline import GATES, products

SHAPES = ("35,20,200", "35,20,650", "35,64,256", "512,8,64", "100,1,512", "35,1,1024")
# The first kind whose pattern a symbol holds.
KINDS = {
    "products": r"gemm|dot_tile|panel_product|RightMatrix<.*>::multiply",
    "elementwise": r"forward_rows|backward<|RNNTanh|row_sums|column_sums|dropout|noise",
    "packing": r"transpose|pack|memmove|memcpy|round|widen|join_pair|add_sample|Cutter",
    "waiting": r"libgomp|Barrier|wait|sched_yield|__schedule",
}
COUNTED = re.compile(r"Event count \(approx\.\): (\d+)")
LINE = re.compile(r"^\s*([\d.]+)%\s+(.*)$")
WARM_UP = 1.0  # seconds


def loop(cell: str, mode: str, shape: Shape, dtype: str, threads: int, seconds: float) -> None:
    """Run one layer again and again; say when it is warm, and at last the seconds of a call."""
    torch.set_num_threads(threads)
    step = Problem(cell, shape, getattr(torch, dtype)).step(mode, "rnnext")
    for end, word in ((WARM_UP, "warm"), (seconds, "")):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() < start + end:
            step()
            calls += 1
        print(word or (time.perf_counter() - start) / calls, flush=True)


def shares_of(report: str, seconds: float) -> dict[str, float]:
    """Of so many seconds of all threads, by perf's report of overhead, library and symbol.

    Raises:
        ValueError: it counted nothing.
    """
    counted = COUNTED.search(report)
    if counted is None:
        raise ValueError(f"perf's report counts nothing:\n{report}")
    busy = int(counted[1]) / 1e9 / seconds  # some threads sleep at times
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    for match in filter(None, map(LINE.match, report.splitlines())):
        kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, match[2]))
        shares[next(kinds, "other")] += float(match[1]) / 100 * busy
    shares["asleep"] = max(0.0, 1 - sum(shares.values()))
    return shares


def profile(arguments: list[str], threads: int, seconds: float) -> tuple[float, dict[str, float]]:
    """Seconds of a call of `loop(*arguments)`, and the share of the threads' time of each kind."""
    command = [sys.executable, __file__, "--loop", *arguments, str(threads), str(seconds + 1)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "499", "-o", f"{folder}/data"]
        attach = ["-p", str(child.pid), "--", "sleep", str(seconds)]
        subprocess.run([*record, *attach], check=True, stderr=subprocess.DEVNULL)
        call = float(child.stdout.readline())
        report = ["perf", "report", "-i", f"{folder}/data", "--stdio", "-F", "overhead,dso,sym"]
        found = subprocess.run([*report, "-g", "none"], capture_output=True, text=True, check=True)
    return call, shares_of(found.stdout, seconds * threads)


def main() -> None:
    if sys.argv[1:2] == ["--loop"]:
        cell, mode, shape, dtype, threads, seconds = sys.argv[2:]
        return loop(cell, mode, shape_of(shape), dtype, int(threads), float(seconds))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--cells", nargs="+", choices=tuple(GATES), default=["LSTM"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["training"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--shapes", nargs="+", type=shape_of, default=[shape_of(text) for text in SHAPES]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each profile")
    options = parser.parse_args()
    if not shutil.which("perf"):
        parser.error("perf is not installed: on Debian, apt install linux-perf")
    torch.set_num_threads(options.threads)
    machine = probes.measure(options.threads)
    rows: list[dict[str, Any]] = []
    for cell, mode, dtype, shape in itertools.product(
        options.cells, options.modes, options.dtypes, options.shapes
    ):
        sizes = ",".join(map(str, (shape.T, shape.N, shape.H)))
        sizes += f",L{shape.L},D{shape.D}" + ",packed" * shape.packed
        call, shares = profile([cell, mode, sizes, dtype], options.threads, options.seconds)
        reached = products(GATES[cell], mode, shape) / (call * shares["products"])
        row = {"cell": cell, "mode": mode, "dtype": dtype, "shape": str(shape)}
        rows.append(
            {
                **row,
                "milliseconds": 1e3 * call,
                "shares": shares,
                "products_of_peak": reached / machine.peak(dtype),
            }
        )
        text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        print(*row.values(), f"{1e3 * call:.2f} ms: {text}; products at", end=" ")
        print(f"{rows[-1]['products_of_peak']:.0%} of the peak", flush=True)
    if options.out:
        about = {**versions(), "gflops": machine.gflops, "seconds": options.seconds}
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
