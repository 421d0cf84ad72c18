"""Time one call of a cell, rnnext's and torch.nn's in turn: what a step by hand costs.

    python benchmarks/cells.py --out benchmarks/results/cells.json

Forward alone, with the graph for backward being built and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import about
from peers import IMPLS

CELLS = ("LSTMCell", "GRUCell", "RNNCell")
SIZES = ((1, 64), (1, 256), (20, 64), (20, 256))  # N, H
CALLS = 300


def microseconds(cell: str, n: int, h: int, grad: bool, repeats: int) -> dict[str, float]:
    """Median over the repeats of the mean of some hundred calls, for each implementation."""
    torch.manual_seed(0)
    modules = {impl: getattr(module, cell)(h, h) for impl, module in IMPLS.items()}
    modules["rnnext"].load_state_dict(modules["torch"].state_dict())
    x, state = torch.randn(n, h), torch.randn(n, h)
    hx = (state, state) if cell == "LSTMCell" else state
    times: dict[str, list[float]] = {impl: [] for impl in IMPLS}
    with torch.set_grad_enabled(grad):
        first = [torch.as_tensor(m(x, hx)[0]) for m in modules.values()]
        torch.testing.assert_close(*first, rtol=1e-5, atol=1e-6)
        for _ in range(repeats):
            for impl, module in modules.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    module(x, hx)
                times[impl].append(1e6 * (time.perf_counter() - start) / CALLS)
    return {impl: statistics.median(values) for impl, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for cell, (n, h), grad in itertools.product(CELLS, SIZES, (True, False)):
        us = microseconds(cell, n, h, grad, options.repeats)
        ratio = us["torch"] / us["rnnext"]
        rows.append(
            {"cell": cell, "N": n, "H": h, "grad": grad, "microseconds": us, "ratio": ratio}
        )
        name = f"{cell:8} N{n} H{h} {'with' if grad else 'no'} grad"
        print(f"{name:30} torch {us['torch']:6.1f} us  rnnext {us['rnnext']:6.1f} us  {ratio:.2f}x")
    if options.out:
        options.out.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
