"""Time whole training steps of the default language model, with rnnext's layers and torch.nn's.

    python benchmarks/language_model.py --out benchmarks/results/language_model.json

The example's sizes on random tokens: vocabulary 10,000, embedding and hidden 200, 2 layers, batch
20, BPTT 35. Steps of the two run in turn; beside them, the recurrent layers alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import about

from rnnext.lm.batches import windows
from rnnext.lm.model import LanguageModel
from rnnext.lm.options import ModelOptions
from rnnext.lm.trainer import train_step

IMPLS = ("rnnext", "torch")
VOCABULARY, BATCH, BPTT = 10_000, 20, 35


def whole_step(cell: str, impl: str) -> Callable[[], object]:
    """One training step: forward, loss, backward, clipping, SGD."""
    torch.manual_seed(0)
    model = LanguageModel(ModelOptions(cell=cell), VOCABULARY, impl)  # type: ignore[arg-type]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tokens = torch.randint(VOCABULARY, (BATCH * BPTT,))
    (window,) = windows(tokens, BATCH, BPTT, torch.device("cpu"))
    return lambda: train_step(model, optimizer, 0.25, window, None)


def layers_alone(cell: str, impl: str) -> Callable[[], object]:
    """Forward and backward of the recurrent layers of that step."""
    torch.manual_seed(0)
    options = ModelOptions(cell=cell)
    layers = LanguageModel(options, VOCABULARY, impl).rnn.train()  # type: ignore[arg-type]
    x = torch.randn(BPTT, BATCH, options.embedding, requires_grad=True)
    dy = torch.randn(BPTT, BATCH, options.hidden)
    inputs = [x, *layers.parameters()]
    return lambda: torch.autograd.grad(layers(x)[0], inputs, dy)


def medians(
    make: Callable[[str, str], Callable[[], object]], cell: str, seconds: float, repeats: int = 6
) -> dict[str, float]:
    """Median milliseconds of a step of each implementation, the two taken in turn.

    Each repeat makes both anew, in the other order: where its memory happens to lie changes a
    model's speed by some percent.
    """
    times: dict[str, list[float]] = {impl: [] for impl in IMPLS}
    order = list(IMPLS)
    for _ in range(repeats):
        order.reverse()
        steps = {impl: make(cell, impl) for impl in order}
        for step in steps.values():
            step()
        end = time.perf_counter() + seconds / repeats
        while time.perf_counter() < end:
            order.reverse()
            for impl in order:
                start = time.perf_counter()
                steps[impl]()
                times[impl].append(1e3 * (time.perf_counter() - start))
    return {impl: statistics.median(values) for impl, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0, help="for each cell")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for cell in ("LSTM", "GRU"):
        step = medians(whole_step, cell, options.seconds)
        layers = medians(layers_alone, cell, options.seconds / 4)
        row = {
            "cell": cell,
            "step_milliseconds": step,
            "layers_milliseconds": layers,
            "step_ratio": step["torch"] / step["rnnext"],
            "layers_ratio": layers["torch"] / layers["rnnext"],
            "tokens_per_second": {i: BATCH * BPTT / step[i] * 1e3 for i in IMPLS},
            "share_of_the_layers": {i: layers[i] / step[i] for i in IMPLS},
        }
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    if options.out:
        result = {"about": about(), "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
