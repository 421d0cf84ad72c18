"""What the benchmarks compare: a pass of a layer by rnnext, torch.nn and a loop in PyTorch."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnext
from rnnext import reference

IMPLS = {"rnnext": rnnext, "torch": nn}
CELLS = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "RNN_TANH"}  # by layer, in rnnext.reference
MODES = ("training", "inference")

Step = Callable[[], tuple[Tensor, ...]]


class WrongResult(Exception):
    """A result that is too far from float64's: its time means nothing."""


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

    @property
    def lengths(self) -> list[int]:
        """Of the sequences, the longest first: T, or if packed spread evenly over 1 .. T."""
        if not self.packed:
            return [self.T] * self.N
        return [round(self.T - i * (self.T - 1) / max(1, self.N - 1)) for i in range(self.N)]

    @property
    def rows(self) -> int:
        return sum(self.lengths)


SHAPES = (
    Shape(35, 20, 200),
    Shape(35, 20, 650),
    Shape(35, 20, 1500),
    Shape(70, 80, 1150),
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
    Shape(35, 20, 650, D=2),
    Shape(60, 16, 256, L=2, D=2),
    Shape(35, 20, 650, packed=True),
    Shape(80, 32, 256, packed=True),
    Shape(200, 32, 128, packed=True),
)


def shape_of(text: str) -> Shape:
    """From "T,N,H", with ",L2", ",D2" or ",packed" after it."""
    found = re.fullmatch(r"([1-9]\d*),([1-9]\d*),([1-9]\d*)(,L[1-9])?(,D[12])?(,packed)?", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected T,N,H, each 1 or more, then what applies of L2 (layers), D2 "
            "(directions), packed, in this order; for example 35,20,200,L2"
        )
    *sizes, layers, directions, packed = found.groups()
    options = {"L": int((layers or ",L1")[2:]), "D": int((directions or ",D1")[2:])}
    return Shape(*map(int, sizes), **options, packed=bool(packed))


class Problem:
    """A cell and a shape: the same weights, input and output gradient for every implementation.

    These are `rnnext`, `torch` (torch.nn; cuDNN's where that is) and `loop` (the equations step by
    step in PyTorch).
    """

    def __init__(
        self,
        cell: str,
        shape: Shape,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.cell, self.shape, self.dtype = cell, shape, dtype
        options = {"num_layers": shape.L, "bidirectional": shape.D == 2, "dtype": dtype}
        self.layers = {
            name: getattr(module, cell)(shape.H, shape.H, **options).to(device)
            for name, module in IMPLS.items()
        }
        self.layers["rnnext"].load_state_dict(self.layers["torch"].state_dict())
        self.layers["loop"] = self.layers["torch"]
        x = torch.randn(shape.T, shape.N, shape.H).to(device, dtype)
        self.x: Tensor | PackedSequence = x
        if shape.packed:
            self.x = pack_padded_sequence(x, torch.tensor(shape.lengths))
        dy = torch.randn(*self._data(self.x).shape[:-1], shape.D * shape.H)
        self.dy = dy.to(device, dtype)

    @property
    def weights(self) -> list[Tensor]:
        return list(self.layers["torch"].parameters())

    @staticmethod
    def _data(x: Tensor | PackedSequence) -> Tensor:
        return x.data if isinstance(x, PackedSequence) else x

    def _forward(self, impl: str, x: Tensor | PackedSequence) -> tuple[Tensor, ...]:
        """The output and the final states."""
        layer = self.layers[impl]
        if impl == "loop":
            return tuple(
                reference.rnn(
                    CELLS[self.cell],
                    self._data(x),
                    [],
                    list(layer.parameters()),
                    batch_sizes=x.batch_sizes if isinstance(x, PackedSequence) else None,
                    num_layers=self.shape.L,
                    bidirectional=self.shape.D == 2,
                )
            )
        y, states = layer(x)
        return (self._data(y), *(states if isinstance(states, tuple) else (states,)))

    def training(self, impl: str) -> Step:
        """Forward and backward: the outputs, and the gradients of the input and the weights."""
        weights = list(self.layers[impl].parameters())
        leaf = self._data(self.x).detach().requires_grad_()
        x = self.x._replace(data=leaf) if isinstance(self.x, PackedSequence) else leaf

        def step() -> tuple[Tensor, ...]:
            outputs = self._forward(impl, x)
            return (*outputs, *torch.autograd.grad(outputs[0], [leaf, *weights], self.dy))

        return step

    def inference(self, impl: str) -> Step:
        """Forward alone, in inference mode."""

        @torch.inference_mode()
        def step() -> tuple[Tensor, ...]:
            return self._forward(impl, self.x)

        return step

    def step(self, mode: str, impl: str) -> Step:
        return self.training(impl) if mode == "training" else self.inference(impl)

    @torch.backends.cudnn.flags(enabled=False)
    def exact(self, mode: str) -> tuple[Tensor, ...]:
        """The same in float64, by torch.nn without cuDNN."""
        twin = copy.copy(self)
        twin.dy = self.dy.double()
        twin.layers = {"torch": copy.deepcopy(self.layers["torch"]).double()}
        if isinstance(self.x, PackedSequence):
            twin.x = self.x._replace(data=self.x.data.double())
        else:
            twin.x = self.x.double()
        return twin.step(mode, "torch")()


def worst_error(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Largest norm of a difference over the norm, among outputs and gradients; NaN if one is."""
    errors = []
    for a, b in zip(results, exact, strict=True):
        norm = b.norm()  # zero for W_hh's gradient where there is one step
        errors.append((a.double() - b).norm() / (norm if norm > 0 else 1))
    return torch.stack(errors).max().item()


def check(problem: Problem, mode: str, impls: Iterable[str] = tuple(IMPLS)) -> dict[str, float]:
    """Errors of each implementation; refuses to time what is wrong.

    Raises:
        WrongResult: rnnext is off by more than 1e-5 and by more than twice torch.nn's error; in
            bfloat16 by more than 2e-2 and 1.5 times.
    """
    exact = problem.exact(mode)
    errors = {impl: worst_error(problem.step(mode, impl)(), exact) for impl in impls}
    enough, factor = (1e-5, 2) if problem.dtype == torch.float32 else (2e-2, 1.5)
    bound = max(enough, factor * errors["torch"])
    if not errors["rnnext"] <= bound:
        raise WrongResult(
            f"{problem.cell} {mode} {problem.shape} {problem.dtype}: rnnext's error against "
            f"float64 is {errors['rnnext']:.1e}, expected {bound:.1e} or less (torch.nn's is "
            f"{errors['torch']:.1e})"
        )
    return errors
