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
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import probes
import torch
from machine import versions
from peers import MODES, Problem, Shape, shape_of
from roofline import BYTES, GATES, products

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


def loop(
    words: Connection, cell: str, mode: str, shape: Shape, dtype: str, threads: int, seconds: float
) -> None:
    """A process that runs one layer again and again; it says when it is warm, then how long a call
    took in the mean."""
    torch.set_num_threads(threads)
    step = Problem(cell, shape, getattr(torch, dtype)).step(mode, "rnnext")
    for length in (WARM_UP, seconds):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() < start + length:
            step()
            calls += 1
        words.send((time.perf_counter() - start) / calls)


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


def perf(*arguments: str) -> str:
    """What it prints.

    Raises:
        RuntimeError: what it says is wrong.
    """
    done = subprocess.run(["perf", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"perf {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def profile(threads: int, seconds: float, *layer: Any) -> tuple[float, dict[str, float]]:
    """Seconds of a call of a layer (cell, mode, shape, dtype), and of each kind the share of the
    threads' time."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=loop, args=(theirs, *layer, threads, seconds + 1), daemon=True)
    child.start()
    theirs.close()  # so that the end of a child that failed is seen
    ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/data"
        what = ("-q", "-e", "cpu-clock", "-F", "499", "-o", file, "-p", str(child.pid))
        perf("record", *what, "--", "sleep", str(seconds))
        call = ours.recv()
        report = perf("report", "-i", file, "--stdio", "-F", "overhead,dso,sym", "-g", "none")
    child.join()
    return call, shares_of(report, seconds * threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--cells", nargs="+", choices=tuple(GATES), default=["LSTM"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["training"])
    parser.add_argument("--dtypes", nargs="+", default=list(BYTES), choices=BYTES)
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
        call, shares = profile(options.threads, options.seconds, cell, mode, shape, dtype)
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
