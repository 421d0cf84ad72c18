"""Shapes, data and comparisons for the tests of the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor

from rnnext import reference
from rnnext.codegen import build

NN_CELLS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")  # those that torch.nn has too
CELLS = (*NN_CELLS, "LSTM_PROJ")


@dataclass(frozen=True)
class Case:
    """One call of the op. T time, N batch, C input size, H hidden size, L layers, D directions."""

    T: int
    N: int
    C: int
    H: int
    L: int = 1
    D: int = 1
    bias: bool = True
    h0: bool = True
    lengths: tuple[int, ...] = ()
    dropout: float = 0.0
    sizes: tuple[int, ...] = ()  # of the cell; those that it has beyond these are H // 2 + 1
    heads: int = 1

    def __str__(self) -> str:
        parts = [f"T{self.T}-N{self.N}-C{self.C}-H{self.H}-L{self.L}-D{self.D}"]
        parts += [word for word, said in (("nobias", not self.bias), ("noh0", not self.h0)) if said]
        parts += ["packed"] if self.lengths else []
        parts += [f"dropout{self.dropout}"] if self.dropout else []
        parts += [f"heads{self.heads}"] if self.heads > 1 else []
        return "-".join(parts)


LARGE = Case(T=35, N=20, C=30, H=200, L=2, D=2)
FEW = Case(T=9, N=2, C=130, H=330, h0=False)  # fewer sequences than keep threads busy by themselves
PACKED = Case(T=30, N=9, C=17, H=40, L=2, D=2, lengths=(30, 30, 21, 8, 8, 7, 3, 1, 1))
DROPOUT = Case(T=11, N=6, C=8, H=24, L=3, D=2, dropout=0.4)

# Sizes that are multiples of nothing, single steps, rows and units, fewer rows than threads,
# several time blocks, and products both packed and in place.
CASES = (
    Case(T=5, N=3, C=4, H=7),
    Case(T=1, N=1, C=1, H=1),
    Case(T=1, N=2, C=3, H=64, L=2),
    Case(T=3, N=70, C=1, H=1, D=2),
    Case(T=4, N=0, C=3, H=5),
    Case(T=4, N=3, C=0, H=5, L=2),
    Case(T=9, N=3, C=0, H=40, D=2),
    Case(T=63, N=1, C=17, H=65, D=2, h0=False),
    Case(T=129, N=5, C=33, H=17, L=2, bias=False),
    LARGE,
    Case(T=12, N=130, C=65, H=48),
    FEW,
    Case(T=1, N=21, C=8, H=40, D=2, h0=False),
    Case(T=2, N=9, C=30, H=130, L=2, D=2, h0=False, bias=False),
    Case(T=6, N=1, C=650, H=650),
    Case(T=3, N=11, C=8, H=900),  # weights larger than the caches
    PACKED,
    Case(T=200, N=3, C=5, H=70, D=2, lengths=(200, 150, 2)),
    Case(T=7, N=1, C=4, H=130, lengths=(7,), h0=False),
    DROPOUT,
    Case(T=9, N=4, C=8, H=20, L=2, dropout=0.25, lengths=(9, 9, 4, 1)),
    Case(T=4, N=2, C=3, H=5, L=2, dropout=1.0),
)


class Data:
    """Inputs, initial states, weights and output gradients of a case, in float64 on the CPU.

    What `inputs` and `output_grads` give, and so what runs, is on `device`.
    """

    def __init__(self, cell: str, case: Case, seed: int = 0, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.cell, self.case, self.device = cell, case, device
        self.declaration = reference.CELLS[cell]
        random = case.dropout > 0 or self.declaration.noise
        self.seed = torch.tensor(1234567890123) if random else None
        self.batch_sizes: Tensor | None = None
        rows = (case.T, case.N)
        if case.lengths:
            alive = [sum(n > t for n in case.lengths) for t in range(case.T)]
            self.batch_sizes = torch.tensor(alive)
            rows = (sum(alive),)
        missing = len(self.declaration.sizes) - len(case.sizes)
        self.sizes = (*case.sizes, *[case.H // 2 + 1] * missing)
        sizes = self.declaration.size_values(case.H, self.sizes)
        widths = self.declaration.state_widths(sizes)
        self.x = draw(*rows, case.C)
        states = [(case.L * case.D, case.N, width) for width in widths]
        self.h0 = [draw(*shape) for shape in states] if case.h0 else []
        self.weights = []
        for layer in range(case.L):
            columns = case.C if layer == 0 else case.D * widths[0]
            shapes = self.declaration.weight_shapes(case.bias, columns, sizes, case.heads)
            for _ in range(case.D):
                self.weights += [draw(*shape) / (2 * case.H**0.5) for shape in shapes]
        self.grads = [draw(*rows, case.D * widths[0]), *(draw(*shape) for shape in states)]

    @property
    def options(self) -> dict:
        return {
            "batch_sizes": self.batch_sizes,
            "seed": self.seed,
            "num_layers": self.case.L,
            "bidirectional": self.case.D == 2,
            "dropout": self.case.dropout,
            "sizes": self.sizes,
        }

    @property
    def positional_options(self) -> tuple:
        return tuple(self.options.values())

    @property
    def names(self) -> list[str]:
        """Names of the outputs, then of the gradients of every input."""
        states = self.declaration.states
        weights = []
        for layer in range(self.case.L):
            for direction in range(self.case.D):
                suffix = f"_l{layer}{'_reverse' * direction}"
                names = self.declaration.weight_names(self.case.bias)
                weights += [f"d{name}{suffix}" for name in names]
        initial = [f"d{s}0" for s in states] if self.case.h0 else []
        return ["y", *(f"{s}_n" for s in states), "dx", *initial, *weights]

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        tensors = [self.x, *self.h0, *self.weights]
        return [t.to(self.device, dtype).clone().requires_grad_() for t in tensors]

    def output_grads(self, dtype: torch.dtype) -> list[Tensor]:
        return [g.to(self.device, dtype) for g in self.grads]

    def split(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        k = 1 + len(self.h0)
        return inputs[0], inputs[1:k], inputs[k:]

    def prepared(self, function, dtype: torch.dtype) -> Callable[[], dict[str, Tensor]]:  # type: ignore[no-untyped-def]
        """`run`, of inputs that are made once for all calls."""
        inputs, given = self.inputs(dtype), self.output_grads(dtype)

        def run() -> dict[str, Tensor]:
            outputs = function(self.cell, *self.split(inputs), **self.options)
            # A cell need not see all of its states.
            grads = torch.autograd.grad(outputs, inputs, given, materialize_grads=True)
            results = [*outputs, *grads]
            return {n: r.detach() for n, r in zip(self.names, results, strict=True)}

        return run

    def run(self, function, dtype: torch.dtype) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        """Every output and every gradient of `function`, which has the signature of `ops.rnn`."""
        return self.prepared(function, dtype)()

    def on(self, device: str) -> Data:
        """The same data for a device; what is not the device's is shared."""
        other = copy.copy(self)
        other.device = device
        return other

    def reference(self) -> dict[str, Tensor]:
        return self.on("cpu").run(reference.rnn, torch.float64)

    def rounded(self, dtype: torch.dtype) -> Data:
        """The same data as a dtype holds it."""
        other = copy.copy(self)
        other.x = self.x.to(dtype).double()
        for name in ("h0", "weights", "grads"):
            setattr(other, name, [t.to(dtype).double() for t in getattr(self, name)])
        return other

    def without_dropout(self) -> Data:
        return Data(self.cell, replace(self.case, dropout=0.0), device=self.device)


def data_of(cell: str, case: Case, device: str = "cpu") -> Data:
    """Data of a built-in cell, or of one of tests/written_cells.py, which is compiled."""
    if cell not in CELLS:
        zoo = import_module("written_cells").ZOO  # reads all of its steps: seconds
        cell = str(build.kernel(zoo[cell]._default))
    return Data(cell, case, device=device)


def torch_nn(cell: str, x, h0, weights, *, batch_sizes, num_layers, bidirectional, **_):  # type: ignore[no-untyped-def]
    """The same call on torch.nn's functions (no dropout)."""
    function = getattr(torch, cell.lower())
    directions = 2 if bidirectional else 1
    bias = len(weights) == 4 * num_layers * directions
    hidden = weights[1].shape[1]
    if not h0:
        batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
        zeros = x.new_zeros(num_layers * directions, batch, hidden)
        h0 = [zeros] * (2 if cell == "LSTM" else 1)
    state = list(h0) if cell == "LSTM" else h0[0]
    options = (weights, bias, num_layers, 0.0, True, bidirectional)
    if batch_sizes is None:
        return list(function(x, state, *options, False))
    return list(function(x, batch_sizes, state, *options))


def spread(t: Tensor) -> Tensor:
    """The same values, every second element of a larger tensor with its axes reversed."""
    large = t.new_full([2 * n for n in reversed(t.shape)], float("nan"))
    view = large.permute(*reversed(range(t.dim())))[tuple(slice(0, None, 2) for _ in t.shape)]
    return view.copy_(t)


def error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm, in float64; infinite where a value is missing."""
    assert result.shape == expected.shape
    result = result.to(expected.device)
    difference = (result.double() - expected.double()).norm()
    norm = expected.double().norm()
    if norm == 0:
        return difference.item()
    return (difference / norm).nan_to_num(nan=float("inf")).item()
