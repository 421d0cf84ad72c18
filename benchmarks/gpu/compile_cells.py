"""Compile the cells that the GPU's tests and benchmarks use, all at once, into the cache of cells.

    RNNEXT_CACHE=build/cells python benchmarks/gpu/compile_cells.py

A cell is compiled when it first runs on a device, which takes nvcc half a minute; one after the
other, as the tests come to them, that is most of their time. Here each has a process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # what all benchmarks share
# Before it, for there are two modules called written_cells.
sys.path.insert(1, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(1, str(Path(__file__).parents[2] / "tests" / "gpu"))

import gpu_cases
import grid
import torch

import rnnext

# Module, name in it, and whether its derivative is compiled too.
Task = tuple[str, str, bool]

# Layers by the names of their cells, of those that have no class of the name.
BUILT_IN = {"RNN_TANH": ("RNN", {}), "RNN_RELU": ("RNN", {"nonlinearity": "relu"})}
BUILT_IN |= {"LSTM_PROJ": ("LSTM", {"proj_size": 3})}


def tasks() -> list[Task]:
    twice = [("rnnext", cell, True) for cell in gpu_cases.TWICE if cell not in gpu_cases.WRITTEN]
    tested = [("written_cells", cell, cell in gpu_cases.TWICE) for cell in gpu_cases.WRITTEN]
    timed = [("written", cell, False) for cell in grid.WRITTEN]
    return [*tested, *timed, ("noise_cell", "Noises", False), *twice]


def run(task: Task, device: str) -> float:
    """Run the cell forward and backward, and backward once more; returns seconds."""
    begin = time.monotonic()
    torch.set_num_threads(1)
    module, name, twice = task
    layer, options = BUILT_IN.get(name, (name, {})) if module == "rnnext" else (name, {})
    model = getattr(import_module(module), layer)(5, 7, **options).to(device)
    x = torch.randn(3, 2, 5, device=device, requires_grad=True)
    y, _ = model(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=twice)
    if twice:
        gradient.square().sum().backward()
    return time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was compiled", file=sys.stderr)
        return 2
    print(f"rnnext {rnnext.__version__}, {len(tasks())} cells", flush=True)
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        futures = {pool.submit(run, task, options.device): task for task in tasks()}
        for future in as_completed(futures):
            module, name, twice = futures[future]
            what = f"{module}.{name}{' and its derivative' * twice}"
            if error := future.exception():
                failed += 1
                print(f"failed: {what}: {error}", flush=True)
            else:
                print(f"{what}: {future.result():.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
