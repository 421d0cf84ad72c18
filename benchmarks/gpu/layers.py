"""Time rnnext's layers on a GPU against cuDNN, a loop in PyTorch, and others that are installed.

    python benchmarks/gpu/layers.py                          # four minutes: results/<device>.json
    python benchmarks/gpu/layers.py --minutes 20
    python benchmarks/gpu/layers.py --shapes 35,20,650 --maths bf16 --cells GRU --out one.json
    python benchmarks/gpu/layers.py --show benchmarks/results/nvidia-h200.json
    python benchmarks/gpu/layers.py --device cpu --shapes 3,2,8 --out /tmp/try.json

The most important shapes come first, and each row is in the file as soon as it is measured: a run
that is ended early loses nothing. Medians of several rounds in turn, by CUDA events; launch
overhead aside, the same out of a CUDA graph. What is wrong against float64 is not timed: it is
listed, and the exit status is 1. With no GPU it is 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))  # what all benchmarks share

import gpu_report
import others
import torch
from assumptions import algorithm, driver
from cuda_timing import Bursts, captured, tf32
from gpu_floor import DTYPES, Chip, gpu_floor, measure_chip
from gpu_targets import ERRORS
from grid import CELLS, MATHS, WRITTEN, Job, jobs
from machine import versions
from peers import MODES, Problem, Step, WrongResult, shape_of, worst_error
from timing import Clock, in_turn, wall
from written import Written

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]
Errors = dict[str, float]


def seconds_of(steps: Mapping[str, Step], seconds: float, clock: Clock) -> dict[str, float]:
    """The medians."""
    guests = [name for name in steps if name == "loop"]
    times = in_turn(steps, seconds, rounds=5, guests=guests, clock=clock)
    return {name: statistics.median(values) for name, values in times.items()}


def errors_of(results: tuple[Any, ...], exact: tuple[Any, ...], outputs: int) -> Errors:
    """Of what there is of the results: others return fewer gradients than rnnext."""
    errors = {"outputs": worst_error(results[:outputs], exact[:outputs])}
    if gradients := results[outputs:]:
        errors["gradients"] = worst_error(gradients, exact[outputs : outputs + len(gradients)])
    return errors


def refuse_wrong(job: Job, mode: str, errors: Mapping[str, Errors]) -> None:
    """An error is right up to the bound of its math, or twice that of the peer.

    Raises:
        WrongResult: ours is not; what is wrong of the others is theirs.
    """
    peer = errors[job.others[0]]
    for name in errors:
        if not name.startswith("rnnext"):
            continue
        for what, error in errors[name].items():
            bound = max(ERRORS[job.math], 2 * peer[what])
            if not error <= bound:
                raise WrongResult(
                    f"{job} {mode}: the error of {name}'s {what} against float64 is {error:.1e}, "
                    f"expected {bound:.1e} or less (the peer's is {peer[what]:.1e})"
                )


def steps_of(job: Job, mode: str, problem: Problem | Written) -> dict[str, Step]:
    """Ours, and those that it is compared with; the others' last."""
    if isinstance(problem, Problem):
        steps = {name: problem.step(mode, name) for name in ("rnnext", *job.others)}
        return {**steps, **others.steps_of(job, problem, mode)}
    lstm = Problem("LSTM", job.shape, problem.x.dtype, problem.x.device)
    steps = {"rnnext": problem.step(mode, "kernel"), "loop": problem.step(mode, "loop")}
    return {**steps, "built-in": lstm.step(mode, "rnnext")}


def measure(job: Job, mode: str, problem: Problem | Written, clock: Clock, seconds: float) -> Row:
    """Times and errors of a job in a mode.

    Raises:
        WrongResult: what `refuse_wrong` raises.
    """
    steps = steps_of(job, mode, problem)
    exact = problem.exact(mode)
    inputs = 1 + len(problem.weights) if mode == "training" else 0
    outputs = len(exact) - inputs
    notes: dict[str, str] = {}
    errors: dict[str, Errors] = {}
    for name, step in list(steps.items()):
        if name == "built-in":  # which computes something else
            continue
        try:
            errors[name] = errors_of(step(), exact, outputs)
        except Exception as error:
            if name not in others.NAMES:
                raise
            notes[name] = f"does not run: {_first_line(error)}"
            del steps[name]
    refuse_wrong(job, mode, errors)
    times = seconds_of(steps, seconds, clock)

    graphs: dict[str, Step] = {}
    for name, step in steps.items() if clock is not wall else ():
        if name in ("rnnext", "torch", "built-in"):
            try:
                graphs[name] = captured(step)
            except RuntimeError as error:
                notes[name] = f"not captured in a graph: {_first_line(error)}"
                continue
            if name in errors:
                errors[f"{name} graph"] = errors_of(graphs[name](), exact, outputs)
    refuse_wrong(job, mode, errors)
    graph_times = seconds_of(graphs, seconds / 2, clock) if graphs else {}
    return {
        "errors": errors,
        "milliseconds": {name: 1e3 * value for name, value in times.items()},
        "graph_milliseconds": {name: 1e3 * value for name, value in graph_times.items()},
        "notes": notes,
        "ratios": _over(times),
        "graph_ratios": _over(graph_times),
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _over(times: Mapping[str, float]) -> dict[str, float]:
    """The others' times over ours."""
    ours = times.get("rnnext")
    return {k: v / ours for k, v in times.items() if k != "rnnext"} if ours else {}


def cudnns_way(job: Job, device: torch.device) -> str:
    """What PyTorch asks of cuDNN for the layer; for packed and stacked ones never persistent."""
    if device.type != "cuda" or job.kind == "written":
        return ""
    found = algorithm(job.cell, job.math, job.shape)
    plain = not job.shape.packed and job.shape.L == job.shape.D == 1
    return found if plain or found != "PERSIST_STATIC" else "STANDARD"


def rows_of(
    job: Job, modes: list[str], device: torch.device, chip: Chip, clock: Clock, seconds: float
) -> tuple[list[Row], list[str]]:
    """A row for each mode, and what is wrong."""
    rows, refused = [], []
    dtype = DTYPES[job.math]
    with tf32(job.math == "tf32"):
        problem: Problem | Written
        if job.kind == "written":
            problem = Written(WRITTEN[job.cell], job.shape, dtype, device)
        else:
            problem = Problem(job.cell, job.shape, dtype, device)
        for mode in modes:
            try:
                measured = measure(job, mode, problem, clock, seconds)
            except (WrongResult, RuntimeError) as error:
                refused.append(f"{job} {mode}: {error}")
                continue
            floor = gpu_floor(chip, job.gates, mode, job.shape, job.math)
            ours = 1e-3 * measured["milliseconds"]["rnnext"]
            facts = {"kind": job.kind, "cell": job.cell, "math": job.math, "shape": str(job.shape)}
            rows.append(
                {
                    "id": str(job),
                    **facts,
                    **dataclasses.asdict(job.shape),
                    "mode": mode,
                    "algorithm": cudnns_way(job, device),
                    **measured,
                    "microseconds_a_step": 1e6 * ours / job.shape.T,
                    "floor_milliseconds": {
                        k: 1e3 * v for k, v in dataclasses.asdict(floor).items()
                    },
                    "bound": floor.bound,
                    "fraction": floor.seconds / ours,
                }
            )
    return rows, refused


def about(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": "the CPU", "driver": "none"}
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        facts = {
            "device": chip.name,
            "capability": f"{chip.major}.{chip.minor}",
            "multiprocessors": chip.multi_processor_count,
            "gibibytes": chip.total_memory / 2**30,
            "driver": driver(),
        }
    cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {**versions(), **facts, **cuda}


def write(result: dict[str, Any], path: Path) -> None:
    """At once, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)


def save(result: dict[str, Any], path: Path | None) -> None:
    """The result file, and its report beside it."""
    if path is None:
        return
    write(result, path)
    gpu_report.write(result, path)


def run(options: argparse.Namespace, path: Path | None) -> dict[str, Any]:
    begin = time.monotonic()
    device = torch.device(options.device)
    clock: Clock = Bursts() if device.type == "cuda" else wall
    todo = jobs(options.cells, options.maths, options.shapes)
    chip = measure_chip(device, clock, options.maths)
    result: dict[str, Any] = {
        "about": about(device),
        "chip": dataclasses.asdict(chip),
        "rows": [],
        "refused": [],
    }
    for k, job in enumerate(todo):
        result["left_out"] = [str(left) for left in todo[k:]]
        if time.monotonic() - begin > 60 * options.minutes:
            break
        rows, refused = rows_of(job, options.modes, device, chip, clock, options.seconds)
        result["rows"] += rows
        result["refused"] += refused
        result["about"]["seconds"] = time.monotonic() - begin
        result["left_out"] = [str(left) for left in todo[k + 1 :]]
        save(result, path)
        for text in refused:
            print(f"not timed: {text}", file=sys.stderr, flush=True)
        for row in rows:
            over = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
            graph = row["graph_ratios"].get("torch")
            over += f", in a graph {graph:.2f}" if graph else ""
            print(
                f"{row['id']:34} {row['mode']:9} {row['microseconds_a_step']:7.2f} us a step, "
                f"{row['fraction']:4.0%} of the floor; ratios: {over}",
                flush=True,
            )
    return result


def default_path(device: str) -> Path | None:
    if device != "cuda":
        return None
    slug = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    return RESULTS / f"{slug}.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="the result file; its report goes beside it, .md")
    add("--show", type=Path, help="print the targets of a result file, and measure nothing")
    add("--report", type=Path, help="write the report of a result file, and measure nothing")
    add("--minutes", type=float, default=4.0, help="no job begins after so many")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script itself")
    add("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    add("--modes", nargs="+", default=list(MODES), choices=MODES)
    add("--maths", nargs="+", default=list(MATHS), choices=MATHS)
    add("--shapes", nargs="+", type=shape_of, help="T,N,H[,L2][,D2][,packed]")
    add("--seconds", type=float, default=0.25, help="for each row; a graph has half of it")
    options = parser.parse_args()
    if options.show:
        print(gpu_report.short(json.loads(options.show.read_text())))
        return 0
    if options.report:
        gpu_report.write(json.loads(options.report.read_text()), options.report)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured", file=sys.stderr)
        return 2
    path = options.out or default_path(options.device)
    result = run(options, path)
    print("\n" + gpu_report.short(result))
    if path:
        print(f"\nwritten: {path}")
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
