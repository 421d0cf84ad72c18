"""Measure what the plan for recurrent kernels on a GPU assumes, and what cuDNN takes.

    python benchmarks/gpu/assumptions.py                 # some minutes, on a GPU
    python benchmarks/gpu/assumptions.py --quick         # under a minute
    python benchmarks/gpu/assumptions.py --build-only    # needs nvcc, no GPU

Builds and runs assumptions.cu, then times torch.nn's layers by CUDA events, with their errors
against float64 beside the times, and writes one result file. Ends with 2 where there is no GPU, and
with 1 where something failed; what was measured until then is in the file all the same.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
Row = dict[str, Any]


# ---- The program


def build(program: Path, arch: str) -> str:
    """Compiles assumptions.cu for an architecture such as "90a"; returns what the compiler said."""
    if not shutil.which("nvcc"):
        sys.exit("error: there is no nvcc on the PATH; it comes with the CUDA toolkit")
    command = ["nvcc", "-O3", "-std=c++17", "-Xptxas", "-v,-warn-spills", "-Xcompiler", "-Wall"]
    command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-o", str(program), str(HERE / "assumptions.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{said}")
    return said


def resources(said: str) -> list[Row]:
    """Registers, shared memory, stack and spills of each kernel, from the output of ptxas -v."""
    rows: list[Row] = []
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            rows.append({"kernel": found[1], "shared": 0})
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            rows[-1] |= {"stack": int(found[1]), "spills": int(found[2])}
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows[-1] |= {"registers": int(found[1]), "shared": int(shared[1]) if shared else 0}
    demangler = next(filter(shutil.which, ("cu++filt", "c++filt")), None)
    if demangler:
        names = "\n".join(row["kernel"] for row in rows)
        done = subprocess.run([demangler], input=names, capture_output=True, text=True, check=True)
        for row, name in zip(rows, done.stdout.splitlines(), strict=True):
            row["kernel"] = re.sub(r"^void |\(anonymous namespace\)::|\([\w ,*]*\)$", "", name)
    return rows


def build_only() -> int:
    with tempfile.TemporaryDirectory() as folder:
        said = build(Path(folder) / "assumptions", "90a")
    bad = bool(re.search(r"\bwarning\b", said, re.IGNORECASE))
    print(f"{'kernel':45} registers  shared  stack  spills")
    for row in sorted(resources(said), key=lambda row: row["kernel"]):
        values = (row[key] for key in ("registers", "shared", "stack", "spills"))
        print("{:45} {:9}  {:6}  {:5}  {:6}".format(row["kernel"], *values))
        bad |= row["stack"] > 0 or row["spills"] > 0
    if bad:
        print("error: there is a warning, a stack frame or a spill", file=sys.stderr)
    return int(bad)


def measure_device(quick: bool) -> list[Row]:
    """The program's rows; where it fails, those before that, and one that says how."""
    major, minor = torch.cuda.get_device_capability()
    arch = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    with tempfile.TemporaryDirectory() as folder:
        program, output = Path(folder) / "assumptions", Path(folder) / "output"
        build(program, arch)
        command = [str(program), *(("2000", "3") if quick else ())]
        with output.open("w") as stdout:
            run = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
            try:
                # Should even its own watchdogs fail.
                _, stderr = run.communicate(timeout=40 if quick else 210)
            except subprocess.TimeoutExpired:
                run.kill()
                _, stderr = run.communicate()
                stderr += "killed: it took too long"
        rows = [json.loads(line) for line in output.read_text().splitlines() if line[-1:] == "}"]
    if run.returncode:
        rows.append({"name": "assumptions.cu", "failed": stderr.strip()})
    return rows


# ---- torch.nn's layers


@dataclass(frozen=True)
class Shape:
    """One layer on one batch: T time, N batch, H hidden size and input size."""

    T: int
    N: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T} N{self.N} H{self.H}"


PERSIST = Shape(1024, 16, 768)
QUICK = (Shape(35, 20, 650), Shape(512, 8, 512), PERSIST)
SHAPES = (
    *(Shape(35, 20, H) for H in (200, 650, 1150, 1500)),
    Shape(1024, 1, 256),
    *(Shape(512, 8, H) for H in (512, 1024)),
    *(Shape(256, N, H) for N in (64, 128) for H in (512, 1024)),
    PERSIST,
    Shape(128, 64, 2048),
)
CELLS = ("LSTM", "GRU")
MATH = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def algorithm(cell: str, math: str, shape: Shape) -> str:
    """What PyTorch asks of cuDNN in the forward pass of one layer (ATen/native/cudnn/RNN.cpp)."""
    if shape.H <= 192:
        return "SMALL_H"
    multiples = shape.H % 128 == 0 and shape.H <= 1024 and shape.N % 8 == 0 and shape.N <= 128
    return "PERSIST_STATIC" if cell == "LSTM" and math == "fp16" and multiples else "STANDARD"


class Operations(TorchDispatchMode):
    """Notes the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class Problem:
    """A layer with its input and output gradient, on the GPU or anywhere else."""

    def __init__(self, layer: nn.Module, x: Tensor, dy: Tensor) -> None:
        self.layer, self.dy = layer, dy
        self.x = x.detach().requires_grad_()

    @classmethod
    def random(cls, cell: str, shape: Shape, dtype: torch.dtype, device: str) -> Problem:
        torch.manual_seed(0)
        layer = getattr(nn, cell)(shape.H, shape.H, device=device, dtype=dtype)
        x, dy = torch.randn(2, shape.T, shape.N, shape.H, device=device, dtype=dtype)
        return cls(layer, x, dy)

    @torch.no_grad()
    def forward(self) -> tuple[Tensor, ...]:
        return (self.layer(self.x)[0],)

    def training(self) -> tuple[Tensor, ...]:
        """Output, and the gradients of input and weights."""
        y = self.layer(self.x)[0]
        return (y.detach(), *torch.autograd.grad(y, [self.x, *self.layer.parameters()], self.dy))

    def exact(self) -> tuple[Tensor, ...]:
        """The same of the same numbers, in float64 and without cuDNN."""
        twin = Problem(copy.deepcopy(self.layer).double(), self.x.double(), self.dy.double())
        with torch.backends.cudnn.flags(enabled=False):
            return twin.training()

    def uses_cudnn(self) -> bool:
        with Operations() as operations:
            self.forward()
        return "aten::_cudnn_rnn" in operations.names


def error(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Largest norm of a difference over the norm; NaN where anything is not finite."""
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)]
    return max(errors) if all(e < float("inf") for e in errors) else float("nan")


def time_calls(call: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of each of several calls in a row, after a warm-up."""

    def run(count: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]

    run(2)
    usual = statistics.median(run(3))
    return run(min(max(int(1e3 * seconds / usual), 5), 200))


def summary(values: list[float]) -> Row:
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "repeats": len(values)}


def measure_layer(cell: str, shape: Shape, math: str, seconds: float) -> Row:
    torch.backends.cudnn.allow_tf32 = math == "tf32"
    row: Row = {"cell": cell, "shape": str(shape), **asdict(shape), "math": math}
    try:
        problem = Problem.random(cell, shape, MATH[math], "cuda")
        row["algorithm"] = algorithm(cell, math, shape) if problem.uses_cudnn() else "native"
        exact = problem.exact()
        row["error"] = {
            "forward": error(problem.forward(), exact[:1]),
            "training": error(problem.training(), exact),
        }
        del exact
        for mode in ("forward", "training"):
            times = time_calls(getattr(problem, mode), seconds)
            row[mode] = {"unit": "us/step", **summary([1e3 * ms / shape.T for ms in times])}
    except RuntimeError as problem_of_torch:  # a shape that cuDNN refuses is a result too
        row["failed"] = str(problem_of_torch)
    return row


def measure_product(seconds: float) -> Row:
    """TFLOP/s of a large bf16 product, on random numbers (zeros would run faster)."""
    size = 8192
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    rates = [2e-9 * size**3 / ms for ms in time_calls(lambda: a @ b, seconds)]
    return {"name": "product", "dtype": "bf16", "size": size, "unit": "TFLOP/s", **summary(rates)}


# ---- The result


def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(command, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


ORDERED = {"name": "cluster_barrier", "order": "release, acquire"}
PUBLISHED: tuple[tuple[str, float, str, Row], ...] = (
    (
        "data to a block of the cluster",
        0.11,
        "us",
        {"name": "cluster_hop", "cluster": 8, "what": "data"},
    ),
    ("flag through L2, one way", 0.16, "us", {"name": "l2_hop", "what": "flag"}),
    ("cluster barrier, 8 blocks", 0.46, "us", {**ORDERED, "cluster": 8}),
    ("cluster barrier, 16 blocks", 0.46, "us", {**ORDERED, "cluster": 16}),
    ("grid.sync", 1.1, "us", {"name": "grid_sync"}),
    ("launch", 2.1, "us", {"name": "launch", "how": "stream"}),
    ("launch in a graph", 1.3, "us", {"name": "launch", "how": "graph"}),
    ("copy in device memory", 4.3, "TB/s", {"name": "hbm_copy", "how": "memcpy"}),
    ("bf16 product", 790, "TFLOP/s", {"name": "product"}),
)


def compare(rows: list[Row], layers: list[Row]) -> list[Row]:
    """The published costs that the plan rests on, beside what was measured (None: nothing)."""
    table: list[Row] = []

    def add(name: str, expected: float, unit: str, measured: float | None) -> None:
        ratio = None if measured is None else measured / expected
        row = {"name": name, "expected": expected, "measured": measured, "unit": unit}
        table.append({**row, "ratio": ratio})

    for name, expected, unit, wanted in PUBLISHED:
        found = [row for row in rows if "median" in row and wanted.items() <= row.items()]
        scale = 1e-3 if found and found[0]["unit"] == "ns" else 1
        add(name, expected, unit, scale * found[0]["median"] if found else None)

    done = [row for row in layers if "failed" not in row]
    standard = [
        row["forward"]["median"]
        for row in done
        if (row["algorithm"], row["math"]) == ("STANDARD", "bf16")
    ]
    add("cuDNN STANDARD, bf16, fastest shape", 7, "us/step", min(standard, default=None))
    add("cuDNN STANDARD, bf16, slowest shape", 14, "us/step", max(standard, default=None))
    persist = [
        row for row in done if (row["algorithm"], row["shape"]) == ("PERSIST_STATIC", str(PERSIST))
    ]
    for mode, expected in (("forward", 2.0), ("training", 5.2)):
        times = [row[mode]["median"] * PERSIST.T / 1e3 for row in persist]
        add(f"cuDNN PERSIST_STATIC {PERSIST}, {mode}", expected, "ms", min(times, default=None))
    return table


def show(result: Row) -> None:
    print("\nnn layers: us a step forward / forward and backward; error of the latter")
    print(f"{'':22}" + "".join(f"{math:^26}" for math in MATH))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in result["layers"]:
        cells = lines.setdefault((row["cell"], row["shape"]), {})
        if "failed" in row:
            cells[row["math"]] = "failed"
            continue
        f, t, e = row["forward"]["median"], row["training"]["median"], row["error"]["training"]
        star = {"PERSIST_STATIC": "*", "native": "!"}.get(row["algorithm"], " ")
        cells[row["math"]] = f"{f:6.2f} /{t:7.2f}{star} {e:.0e}"
    for (cell, shape), cells in lines.items():
        print(f"{cell:5}{shape:17}" + "".join(f"{cells.get(math, ''):^26}" for math in MATH))
    print("* PERSIST_STATIC   ! not cuDNN\n")
    print(f"{'assumption':50} {'expected':>9} {'measured':>9}           ratio")
    for row in result["assumptions"]:
        measured = "     none" if row["measured"] is None else f"{row['measured']:9.3g}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:5.2f}"
        print(f"{row['name']:50} {row['expected']:9.3g} {measured} {row['unit']:9} {ratio}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="the result file")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, steps and repeats")
    parser.add_argument("--build-only", action="store_true", help="compile, and print resources")
    options = parser.parse_args()
    if options.build_only:
        return build_only()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured", file=sys.stderr)
        return 2

    device = torch.cuda.get_device_name()
    about = {
        "device": device,
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "quick": options.quick,
    }
    slug = re.sub(r"\W+", "-", device.lower())
    out = options.out or HERE.parent / "results" / f"{slug}-assumptions.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    layers: list[Row] = []

    def save() -> Row:
        comparison = compare(rows, layers)
        result = {"about": about, "rows": rows, "layers": layers, "assumptions": comparison}
        out.write_text(json.dumps(result, indent=1) + "\n")
        return result

    seconds = 0.05 if options.quick else 0.2
    rows += measure_device(options.quick)
    rows.append(measure_product(seconds))
    for shape in QUICK if options.quick else SHAPES:
        save()
        for cell, math in itertools.product(CELLS, MATH):
            layers.append(measure_layer(cell, shape, math, seconds))
        print(f"{shape} done", flush=True)
    show(save())
    failed = [row for row in rows + layers if "failed" in row]
    for row in failed:
        print("failed:", *row.values(), file=sys.stderr)
    print(f"\nwritten: {out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
