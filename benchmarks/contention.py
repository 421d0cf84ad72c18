"""Time training on a processor that has other work to do: a second process, or a busy loop.

    python benchmarks/contention.py --out benchmarks/results/contention.json

For rnnext and for torch.nn, in turn and repeated: the passes a second of one process alone; of two
processes at once that do the same, summed, each with as many threads as the one; and of one beside
a busy loop in Python, which takes a processor where it can. Two ratios, of medians over the rounds:

- two processes: both together, over the one alone. 1 is what they can have: the processors are
  busy with one.
- beside a loop: the one beside the loop, over the one alone. Of n threads on n processors and the
  loop, all alike, the threads would get n / (n + 1).

What is wrong is not timed. The processors should have nothing else to do.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from compare import shape_of
from machine import about
from peers import IMPLS, Problem, Shape, Step, check

CELLS = ("LSTM", "GRU")
SHAPES = (Shape(35, 20, 650), Shape(35, 20, 200), Shape(100, 1, 512), Shape(512, 8, 64))
SITUATIONS = ("alone", "two processes", "beside a loop")
START = 0.02  # seconds from the word to the start, so that all begin at once


def passes_per_second(step: Step, start: float, seconds: float) -> float:
    time.sleep(max(0.0, start - time.monotonic()))
    count, begin = 0, time.monotonic()
    while True:
        step()
        count, now = count + 1, time.monotonic()
        if now >= start + seconds:
            return count / (now - begin)


def work(words: Connection, threads: int) -> None:
    """A process that trains when told to: impl, cell, shape, start and seconds."""
    torch.set_num_threads(threads)

    @functools.cache
    def step_of(impl: str, cell: str, shape: Shape) -> Step:
        problem = Problem(cell, shape)
        check(problem, "training")
        step = problem.step("training", impl)
        step()
        return step

    while word := words.recv():  # the last one is None
        impl, cell, shape, start, seconds = word
        step = step_of(impl, cell, shape)
        words.send(passes_per_second(step, start, seconds) if seconds else None)


def spin(words: Connection) -> None:
    """A process that does nothing of use, and never waits, when told to."""
    while word := words.recv():
        *_, start, seconds = word
        words.send(passes_per_second(lambda: tuple(range(1000)), start, seconds))


class Processes:
    """Two that train, and one that spins."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.words: list[Connection] = []
        for target, arguments in ((work, (threads,)), (work, (threads,)), (spin, ())):
            ours, theirs = context.Pipe()
            context.Process(target=target, args=(theirs, *arguments), daemon=True).start()
            self.words.append(ours)

    def stop(self) -> None:
        for words in self.words:
            words.send(None)

    def rates(self, which: Sequence[int], *job: Any, seconds: float) -> list[float]:
        """What these reach at once; 0 seconds: they make ready."""
        start = time.monotonic() + START
        for k in which:
            self.words[k].send((*job, start, seconds))
        return [self.words[k].recv() for k in which]


def measure(
    processes: Processes, cell: str, shape: Shape, seconds: float, rounds: int
) -> dict[str, Any]:
    rates: dict[str, dict[str, list[float]]] = {
        impl: {situation: [] for situation in SITUATIONS} for impl in IMPLS
    }
    for k, impl in ((k, impl) for impl in IMPLS for k in (0, 1)):
        processes.rates([k], impl, cell, shape, seconds=0)
    for _ in range(rounds):
        for impl, found in rates.items():
            run = functools.partial(processes.rates, seconds=seconds)
            found["alone"] += run([0], impl, cell, shape)
            found["two processes"].append(sum(run([0, 1], impl, cell, shape)))
            found["beside a loop"].append(run([0, 2], impl, cell, shape)[0])
    medians = {
        impl: {situation: statistics.median(values) for situation, values in found.items()}
        for impl, found in rates.items()
    }
    return {
        "cell": cell,
        "shape": str(shape),
        "passes_per_second": medians,
        "over_alone": {
            impl: {name: found[name] / found["alone"] for name in SITUATIONS[1:]}
            for impl, found in medians.items()
        },
        "rounds": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="write the result file here")
    add("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    add("--shapes", nargs="+", type=shape_of, default=list(SHAPES), help="T,N,H[,L2][,D2]")
    add("--threads", type=int, default=2, help="of each process that trains")
    add("--seconds", type=float, default=0.5, help="of each measurement")
    add("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    processes = Processes(options.threads)
    print(f"{'':22}{'two processes, summed':>28}{'beside a busy loop':>28}")
    print(f"{'over one alone':22}" + 2 * "".join(f"{impl:>14}" for impl in IMPLS))
    rows = []
    for cell in options.cells:
        for shape in options.shapes:
            row = measure(processes, cell, shape, options.seconds, options.rounds)
            rows.append(row)
            over = row["over_alone"]
            cells = [f"{over[impl][name]:14.0%}" for name in SITUATIONS[1:] for impl in IMPLS]
            print(f"{cell:5}{row['shape']:17}" + "".join(cells), flush=True)
    processes.stop()
    if options.out:
        names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")
        variables = {name: os.environ[name] for name in names if name in os.environ}
        facts = {**about(), "processors": len(os.sched_getaffinity(0)), "variables": variables}
        options.out.write_text(json.dumps({"about": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
