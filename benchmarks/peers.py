"""What the benchmarks compare: a training or inference pass of a layer, by rnnext and torch.nn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import rnnext

IMPLS = {"rnnext": rnnext, "torch": nn}


@dataclass(frozen=True)
class Shape:
    """A layer and its batch: T time, N batch, H hidden and input size, L layers, D directions."""

    T: int
    N: int
    H: int
    L: int = 1
    D: int = 1
    packed: bool = False

    def __str__(self) -> str:
        more = f" L{self.L}" * (self.L > 1) + f" D{self.D}" * (self.D > 1)
        return f"T{self.T} N{self.N} H{self.H}{more}{' packed' * self.packed}"


SHAPES = (
    Shape(35, 20, 200),
    Shape(35, 20, 650),
    Shape(35, 20, 1500),
    Shape(35, 64, 256),
    Shape(200, 32, 128),
    Shape(100, 1, 512),
    Shape(35, 1, 1024),
    Shape(1, 1, 512),
    Shape(512, 8, 64),
    Shape(1000, 4, 256),
    Shape(50, 7, 333),
    Shape(129, 3, 97),
    Shape(35, 20, 200, L=2),
    Shape(60, 16, 256, L=2, D=2),
    Shape(80, 32, 256, packed=True),
)
CELLS = ("LSTM", "GRU", "RNN")


class Problem:
    """A cell and a shape: the same weights, input and output gradient for every implementation."""

    def __init__(self, cell: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        options = {"num_layers": shape.L, "bidirectional": shape.D == 2}
        self.layers = {
            name: getattr(module, cell)(shape.H, shape.H, **options)
            for name, module in IMPLS.items()
        }
        self.layers["rnnext"].load_state_dict(self.layers["torch"].state_dict())
        self.x: Tensor | nn.utils.rnn.PackedSequence = torch.randn(shape.T, shape.N, shape.H)
        if shape.packed:  # lengths spread evenly over 1 .. T
            lengths = torch.linspace(shape.T, 1, shape.N).round().long()
            self.x = nn.utils.rnn.pack_padded_sequence(self.x, lengths)
        self.dy = torch.randn(*self._data(self.x).shape[:-1], shape.D * shape.H)

    @staticmethod
    def _data(x: Tensor | nn.utils.rnn.PackedSequence) -> Tensor:
        return x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x

    def training(self, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        """Forward and backward: the output, and the gradients of the input and the weights."""
        layer, x = self.layers[impl], self.x
        weights = list(layer.parameters())
        leaf = self._data(x).detach().requires_grad_()
        x = x._replace(data=leaf) if isinstance(x, nn.utils.rnn.PackedSequence) else leaf

        def step() -> tuple[Tensor, ...]:
            y = self._data(layer(x)[0])
            return (y, *torch.autograd.grad(y, [leaf, *weights], self.dy))

        return step

    def inference(self, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        """Forward alone, in inference mode."""
        layer = self.layers[impl]

        @torch.inference_mode()
        def step() -> tuple[Tensor, ...]:
            return (self._data(layer(self.x)[0]),)

        return step

    def step(self, mode: str, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        return self.training(impl) if mode == "training" else self.inference(impl)

    def exact(self, mode: str) -> tuple[Tensor, ...]:
        """The same in float64, by torch.nn."""
        twin = copy.copy(self)
        twin.dy = self.dy.double()
        twin.layers = {"torch": copy.deepcopy(self.layers["torch"]).double()}
        if isinstance(self.x, nn.utils.rnn.PackedSequence):
            twin.x = self.x._replace(data=self.x.data.double())
        else:
            twin.x = self.x.double()
        return twin.step(mode, "torch")()


def worst_error(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Largest norm of a difference over the norm, among the output and the gradients."""
    return max(
        ((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)
    )


def check(problem: Problem, mode: str) -> dict[str, float]:
    """Errors of each implementation; refuses to time what is wrong.

    Raises:
        AssertionError: rnnext is off by more than 1e-5 and by more than twice torch.nn's error.
    """
    exact = problem.exact(mode)
    errors = {impl: worst_error(problem.step(mode, impl)(), exact) for impl in IMPLS}
    bound = max(1e-5, 2 * errors["torch"])
    assert errors["rnnext"] <= bound, f"error {errors['rnnext']:.1e}, torch {errors['torch']:.1e}"
    return errors
