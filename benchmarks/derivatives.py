"""Time what derivatives beyond a plain backward cost, and sequences of many lengths.

    python benchmarks/derivatives.py --out benchmarks/results/derivatives.json

- samples: gradients of the weights for each sample, torch.func.vmap of grad; "one by one" is a
  backward for each sample.
- penalty: a loss on the gradient of x, trained: double backward.
- product: a Hessian-vector product with the weights, by torch.func: forward over reverse.
- lengths: training on padded input whose lengths spread over 1 .. T: with lengths=, as a
  PackedSequence (packing and padding included), and padded, which computes padding too.

"loop" is rnnext.reference, plain PyTorch with the input's product made once for all steps, under
the same transforms; "torch" is torch.nn. All run in turn in one process, and the ratios are those
of the medians. What is wrong is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import about
from peers import Shape, worst_error
from timing import in_turn
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnext
from rnnext import reference

CELLS = ("LSTM", "GRU")
SHAPES = (Shape(35, 20, 200), Shape(100, 16, 128), Shape(35, 20, 650))
Step = Callable[[], tuple[Tensor, ...]]


class Task:
    """A cell and a shape: the same weights and input for every implementation."""

    def __init__(self, cell: str, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.cell, self.shape = cell, shape
        self.layer = getattr(rnnext, cell)(shape.H, shape.H).to(dtype)
        self.twin = getattr(nn, cell)(shape.H, shape.H).to(dtype)
        self.twin.load_state_dict(self.layer.state_dict())
        self.names = [name for name, _ in self.layer.named_parameters()]
        self.weights = tuple(w.detach() for w in self.layer.parameters())
        self.x = torch.randn(shape.T, shape.N, shape.H).to(dtype)
        self.target = torch.randn(shape.T, shape.N, shape.H).to(dtype)

    def run(self, impl: str, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        if impl == "loop":
            return reference.rnn(self.cell, x, [], weights)[0]
        layer = self.twin if impl == "torch" else self.layer
        return functional_call(layer, dict(zip(self.names, weights, strict=True)), (x,))[0]

    def loss(self, impl: str, weights: tuple[Tensor, ...], x: Tensor, target: Tensor) -> Tensor:
        return (self.run(impl, weights, x) - target).square().sum()

    def samples(self, impl: str) -> Step:
        x, target = self.x.transpose(0, 1).unsqueeze(2), self.target.transpose(0, 1).unsqueeze(2)
        if impl == "one by one":
            gradient = grad(partial(self.loss, "rnnext"))
            rows = [(x[n], target[n]) for n in range(self.shape.N)]
            return lambda: tuple(
                map(torch.stack, zip(*(gradient(self.weights, *row) for row in rows), strict=True))
            )
        each = vmap(grad(partial(self.loss, impl)), (None, 0, 0))
        return lambda: each(self.weights, x, target)

    def penalty(self, impl: str) -> Step:
        x = self.x.clone().requires_grad_()
        weights = tuple(w.clone().requires_grad_() for w in self.weights)

        def step() -> tuple[Tensor, ...]:
            loss = self.loss(impl, weights, x, self.target)
            (dx,) = torch.autograd.grad(loss, x, create_graph=True)
            return torch.autograd.grad(loss + dx.square().sum(), weights)

        return step

    def product(self, impl: str) -> Step:
        torch.manual_seed(1)
        v = tuple(torch.randn(w.shape).to(w.dtype) for w in self.weights)
        gradient = grad(lambda weights: self.loss(impl, weights, self.x, self.target))
        return lambda: jvp(gradient, (self.weights,), (v,))[1]

    def lengths(self, impl: str) -> Step:
        T, N = self.shape.T, self.shape.N
        ends = torch.linspace(1, T, N).round().long()[torch.randperm(N)]
        real = (torch.arange(T).unsqueeze(1) < ends).unsqueeze(2)
        x = self.x.clone().requires_grad_()
        layer = self.twin if "torch" in impl else self.layer
        weights = list(layer.parameters())

        def step() -> tuple[Tensor, ...]:
            if "packed" in impl:
                packed = pack_padded_sequence(x, ends, enforce_sorted=False)
                y = pad_packed_sequence(layer(packed)[0], total_length=T)[0]
            elif "padded" in impl:
                y = torch.where(real, layer(x)[0], 0)
            else:
                y = layer(x, lengths=ends)[0]
            return (y, *torch.autograd.grad(y, [x, *weights], self.target))

        return step


TASKS = {
    "samples": ("rnnext", "one by one", "loop"),
    "penalty": ("rnnext", "loop", "torch"),
    "product": ("rnnext", "loop"),
    "lengths": ("rnnext", "rnnext packed", "rnnext padded", "torch packed", "torch padded"),
}


def measure(task: str, cell: str, shape: Shape, seconds: float, rounds: int) -> dict[str, Any]:
    problem, double = Task(cell, shape), Task(cell, shape, torch.float64)
    # Float64 by the loop where there is one, else by torch.nn.
    double.x, double.target = problem.x.double(), problem.target.double()
    double.weights = tuple(w.double() for w in problem.weights)
    double.twin.load_state_dict(problem.twin.state_dict())
    impls = TASKS[task]
    torch.manual_seed(2)
    exact = getattr(double, task)("loop" if "loop" in impls else "torch padded")()
    steps, errors = {}, {}
    for impl in impls:
        torch.manual_seed(2)
        steps[impl] = getattr(problem, task)(impl)
        errors[impl] = worst_error(steps[impl](), exact)
        assert errors[impl] < 1e-4, (task, cell, str(shape), errors)
    times = in_turn(steps, seconds, rounds)
    medians = {impl: statistics.median(values) for impl, values in times.items()}
    return {
        "task": task,
        "cell": cell,
        "shape": str(shape),
        "milliseconds": {impl: 1e3 * value for impl, value in medians.items()},
        "over_rnnext": {impl: value / medians["rnnext"] for impl, value in medians.items()},
        "errors": errors,
        "rounds": min(map(len, times.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each set of peers")
    parser.add_argument("--rounds", type=int, default=5, help="at least, of each")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for task in options.tasks:
        for cell in CELLS:
            for shape in SHAPES[: 2 if task == "samples" else 3]:  # the loop takes 15 s a time
                row = measure(task, cell, shape, options.seconds, options.rounds)
                rows.append(row)
                over = ", ".join(f"{k} {v:.2f}" for k, v in row["over_rnnext"].items())
                print(
                    f"{task:8} {cell:5} {row['shape']:15} {row['milliseconds']['rnnext']:8.2f} ms; "
                    f"times as long: {over}; error {row['errors']['rnnext']:.1e}",
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
