"""Cells written in Python, as the benchmarks use them, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import Shape, worst_error
from torch import Tensor
from torch.nn.functional import layer_norm, linear

import rnnext
from rnnext import ops, reference
from rnnext.cell import Declaration
from rnnext.codegen import build


class LSTM(rnnext.Recurrent):
    """As the built-in one."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    @staticmethod
    def step(i, f, g, o, c):  # type: ignore[no-untyped-def]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRU(rnnext.Recurrent):
    """As the built-in one."""

    gates = ("r", "z")
    apart_gates = ("n",)

    @staticmethod
    def step(r, z, n_x, n_h, h):  # type: ignore[no-untyped-def]
        z = torch.sigmoid(z)
        return (1 - z) * torch.tanh(n_x + torch.sigmoid(r) * n_h) + z * h


class LightGRU(rnnext.Recurrent):
    """Ravanelli et al. 2018."""

    gates = ("z", "n")

    @staticmethod
    def step(z, n, h):  # type: ignore[no-untyped-def]
        z = torch.sigmoid(z)
        return z * h + (1 - z) * torch.relu(n)


class MinimalGatedUnit(rnnext.Recurrent):
    """Zhou et al. 2016: a second product within the step."""

    gates = ("f",)
    input_gates = ("n",)
    matrices = {"fh": ("hidden_size", "hidden_size")}  # noqa: RUF012

    @staticmethod
    def step(f, n, h, fh):  # type: ignore[no-untyped-def]
        f = torch.sigmoid(f)
        return (1 - f) * h + f * torch.tanh(n + linear(f * h, fh))


class LayerNormLSTM(rnnext.Recurrent):
    """Ba et al. 2016: the cell state is normalised before it is put out."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    params = {"scale": 1.0, "shift": 0.0}  # noqa: RUF012

    @staticmethod
    def step(i, f, g, o, c, scale, shift, hidden_size):  # type: ignore[no-untyped-def]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(layer_norm(c, (hidden_size,), scale, shift)), c


CELLS = (LSTM, GRU, LightGRU, MinimalGatedUnit, LayerNormLSTM)
BUILT_IN = (LSTM, GRU)
SHAPES = (Shape(35, 20, 200), Shape(200, 32, 128), Shape(100, 1, 512), Shape(35, 20, 650))


class Written:
    """A written cell and a shape: the same weights, input and output gradient for everyone."""

    def __init__(
        self,
        cell: type[rnnext.Recurrent],
        shape: Shape,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.layer = cell(shape.H, shape.H).to(device, dtype)
        self.declaration: Declaration = self.layer.declaration
        self.weights = list(self.layer.parameters())
        self.x, self.dy = (
            torch.randn(shape.T, shape.N, shape.H).to(device, dtype) for _ in range(2)
        )
        self.kernel = build.kernel(self.declaration)

    def run(self, impl: str) -> Callable[[Tensor, list[Tensor]], Tensor]:
        """y of x and the weights. impl: kernel, built-in, loop, compiled loop, compiled step."""
        if impl in ("kernel", "built-in"):
            name = self.kernel if impl == "kernel" else self.declaration.name
            assert name is not None
            return lambda x, weights: ops.rnn(name, x, [], weights)[0]
        if impl == "compiled step":
            return self._compiled_step()

        def loop(x: Tensor, weights: list[Tensor]) -> Tensor:
            return reference.rnn(self.declaration, x, [], weights)[0]

        return torch.compile(loop, dynamic=False) if impl == "compiled loop" else loop

    def _compiled_step(self) -> Callable[[Tensor, list[Tensor]], Tensor]:
        """The loop of reference.rnn around a step that is compiled."""
        cell = self.declaration
        summed, apart = len(cell.gates), len(cell.apart_gates)
        names = cell.weight_names(bias=True)

        def step(row: Tensor, weights: list[Tensor], states: list[Tensor]) -> list[Tensor]:
            given = dict(zip(names, weights, strict=True))
            values: dict[str, object] = dict(zip(cell.states, states, strict=True))
            values |= {name: given[f"weight_{name}"] for name in cell.matrices}
            values |= {name: given[name] for name in cell.params}
            values["hidden_size"] = self.shape.H
            r = linear(states[0], given["weight_hh"], given["bias_hh"]).chunk(summed + apart, -1)
            x = row.chunk(cell.gate_count, -1)
            values |= {name: x[k] + r[k] for k, name in enumerate(cell.gates)}
            for k, name in enumerate(cell.apart_gates, start=summed):
                values |= {f"{name}_x": x[k], f"{name}_h": r[k]}
            for k, name in enumerate(cell.input_gates, start=summed + apart):
                values[name] = x[k]
            return list(cell.call(values))

        compiled = torch.compile(step, dynamic=False)

        def loop(x: Tensor, weights: list[Tensor]) -> Tensor:
            given = dict(zip(names, weights, strict=True))
            rows = linear(x, given["weight_ih"], given["bias_ih"])
            states = [x.new_zeros(self.shape.N, self.shape.H) for _ in cell.states]
            outputs = []
            for row in rows.unbind(0):
                states = compiled(row, weights, states)
                outputs.append(states[0])
            return torch.stack(outputs)

        return loop

    def step(self, mode: str, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        """A pass: y, and in training the gradients of the input and the weights."""
        run = self.run(impl)
        if mode == "inference":
            return torch.no_grad()(lambda: (run(self.x, self.weights),))
        leaf = self.x.clone().requires_grad_()

        def training() -> tuple[Tensor, ...]:
            y = run(leaf, self.weights)
            return (y, *torch.autograd.grad(y, [leaf, *self.weights], self.dy))

        return training

    def double_backward(self, impl: str) -> Callable[[], tuple[Tensor, ...]]:
        """A gradient penalty: of the squared norm of dx, the gradients of input and weights."""
        run = self.run(impl)
        leaf = self.x.clone().requires_grad_()

        def penalty() -> tuple[Tensor, ...]:
            y = run(leaf, self.weights)
            (dx,) = torch.autograd.grad(y, leaf, self.dy, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), [leaf, *self.weights], allow_unused=True)

        return penalty

    def exact(self, mode: str) -> tuple[Tensor, ...]:
        """The loop in float64."""
        twin = object.__new__(Written)
        twin.__dict__.update(self.__dict__)
        twin.x, twin.dy = self.x.double(), self.dy.double()
        twin.weights = [w.detach().double().requires_grad_() for w in self.weights]
        return twin.step(mode, "loop")()

    def check(self, mode: str, impls: list[str]) -> dict[str, float]:
        """Errors of each; refuses to time what is wrong.

        Raises:
            AssertionError: the kernel is off by more than 1e-5 and twice the loop's error.
        """
        exact = self.exact(mode)
        errors = {impl: worst_error(self.step(mode, impl)(), exact) for impl in impls}
        bound = max(1e-5, 2 * errors["loop"])
        assert errors["kernel"] <= bound, f"{self.declaration.name}: {errors}"
        return errors
