"""Measure what one training step of a layer takes in memory.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Of torch.nn, of rnnext, and of rnnext with checkpoint_every:

- peak: how much more memory a step (forward and backward, to the input and all weights) ever held
  than the process did before it, with the layer, its input and the gradient of its output in place.
  Each in a fresh process, after a step on a few rows.
- kept: bytes that autograd keeps from the forward to the backward, without the input and weights.
- times as long: a step beside one of rnnext that keeps everything, in turn in one process; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import about
from peers import Shape
from timing import in_turn
from torch import Tensor, nn

import rnnext

CELLS = ("LSTM", "GRU")
# With the steps from one checkpoint to the next.
SHAPES = (
    (Shape(35, 20, 200), 25),
    (Shape(35, 20, 650, L=2), 25),
    (Shape(200, 32, 128), 32),
    (Shape(60, 16, 256, L=2, D=2), 32),
    (Shape(1000, 4, 256), 128),
    (Shape(20000, 8, 256), 256),
)
IMPLS = ("torch", "rnnext", "checkpoints")
MIB = 2**20


def layer_of(impl: str, cell: str, shape: Shape, every: int) -> nn.Module:
    torch.manual_seed(0)
    options = {"checkpoint_every": every} if impl == "checkpoints" else {}
    module = getattr(nn if impl == "torch" else rnnext, cell)
    return module(shape.H, shape.H, shape.L, bidirectional=shape.D == 2, **options)


def data_of(shape: Shape, steps: int) -> tuple[Tensor, Tensor]:
    """An input and the gradient of its output."""
    x = torch.randn(steps, shape.N, shape.H).requires_grad_()
    return x, torch.randn(steps, shape.N, shape.D * shape.H)


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = layer(x)[0]
    return (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))


def kept_by(layer: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that autograd keeps."""
    given = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in given:
            sizes[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)[0]
    del y
    return sum(sizes.values())


def status(key: str) -> int:
    """Bytes, of this process: VmRSS, what it holds, or VmHWM, the most it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def memory_of(impl: str, cell: str, shape: Shape, every: int) -> dict[str, int]:
    """Of one step, in this process, which has run none of this size."""
    small = replace(shape, H=8)  # what a step of this size left behind would count as held before
    step(layer_of(impl, cell, small, every), *data_of(small, 2))
    layer = layer_of(impl, cell, shape, every)
    x, dy = data_of(shape, shape.T)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    step(layer, x, dy)
    peak = status("VmHWM") - before
    return {"peak": peak, "kept": kept_by(layer, x)}


def in_a_new_process(*arguments: Any) -> dict[str, int]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def times_as_long(cell: str, shape: Shape, every: int, seconds: float) -> float:
    """The checkpointed step over the one that keeps everything. What is not the same is refused."""
    x, dy = data_of(shape, shape.T)
    layers = {impl: layer_of(impl, cell, shape, every) for impl in IMPLS[1:]}
    results = [step(layer, x, dy) for layer in layers.values()]
    assert all(map(torch.equal, *results)), (cell, str(shape))
    del results
    steps: dict[str, Callable[[], Any]] = {
        impl: lambda layer=layer: step(layer, x, dy)  # type: ignore[misc]
        for impl, layer in layers.items()
    }
    times = in_turn(steps, seconds, 3)
    return statistics.median(times["checkpoints"]) / statistics.median(times["rnnext"])


def measure(cell: str, shape: Shape, every: int, seconds: float) -> dict[str, Any]:
    sizes = (shape.T, shape.N, shape.H, shape.L, shape.D)
    threads = torch.get_num_threads()
    found = {impl: in_a_new_process(threads, impl, cell, every, *sizes) for impl in IMPLS}
    return {
        "cell": cell,
        "shape": str(shape),
        "checkpoint_every": every,
        "peak_bytes": {impl: found[impl]["peak"] for impl in IMPLS},
        "kept_bytes": {impl: found[impl]["kept"] for impl in IMPLS},
        "times_as_long": times_as_long(cell, shape, every, seconds),
    }


def child(arguments: list[str]) -> None:
    threads, impl, cell, every, *sizes = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(memory_of(impl, cell, Shape(*map(int, sizes)), int(every))))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for the times of each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{'MiB: peak (kept)':27}" + "".join(f"{impl:>18}" for impl in IMPLS) + "   times as long"
    )
    rows = []
    for shape, every in SHAPES:
        for cell in CELLS:
            row = measure(cell, shape, every, options.seconds)
            rows.append(row)
            figures = "".join(
                f"{row['peak_bytes'][i] / MIB:9.1f} ({row['kept_bytes'][i] / MIB:6.1f})"
                for i in IMPLS
            )
            name = f"{cell:5}{row['shape']:22}"
            print(f"{name}{figures}   {row['times_as_long']:.2f}, every {every}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
