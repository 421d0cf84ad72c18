"""What several cells offer: functions by name, clipping, dropout, zoneout, a forget gate's bias.

Each is a constant of a cell, off at 0; what is off is not in the compiled step.
"""
# mypy: allow-untyped-defs

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnext.noise import listed
from rnnext.recurrent import Recurrent


def keras_hard_sigmoid(value: Tensor) -> Tensor:
    """0.2 a + 0.5 within 0 .. 1: that of Theano, Keras 1 and 2, and ONNX."""
    return (0.2 * value + 0.5).clamp(0, 1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,  # a / 6 + 1/2 within 0 .. 1
    "keras_hard_sigmoid": keras_hard_sigmoid,
    "tanh": torch.tanh,
    "hard_tanh": F.hardtanh,
    "softsign": F.softsign,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "identity": lambda value: value,
}
"""What `gate_function` and `activation` can name."""


def function(name: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function of that name."""
    if name not in FUNCTIONS:
        raise ValueError(f"there is no function {name!r}, expected one of {listed(FUNCTIONS)}")
    return FUNCTIONS[name]


def clipped(value: Tensor, limit: float) -> Tensor:
    """The value within -limit .. limit."""
    return value.clamp(-limit, limit) if limit else value


def dropped(value: Tensor, mask: Tensor, rate: float) -> Tensor:
    """The value with dropout."""
    return mask * value if rate else value


def zoned(old: Tensor, new: Tensor, keep: Tensor, rate: float) -> Tensor:
    """The new state with zoneout: where keep is 1, the old one."""
    return keep * old + (1 - keep) * new if rate else new


class ForgetBias(Recurrent):
    """A base of cells with the constant `forget_bias`: added, once, to the initial bias of a gate.

    Attributes:
        forget_gate: the gate's name; what it is added to is the gate's `shift_` param if the cell
            declares one, else its rows of b_ih.
    """

    forget_gate: ClassVar[str] = "f"

    def reset_parameters(self) -> None:
        """Give the parameters new initial values."""
        forget_bias, shift = self._constants()["forget_bias"], f"shift_{self.forget_gate}"
        if forget_bias and not self.bias and shift not in self.params:
            raise ValueError(
                f"{type(self).__name__}: got forget_bias={forget_bias} and bias=False, but it is "
                "the initial value of a bias: leave one of them out"
            )
        super().reset_parameters()

    def _fill(self, weight: Tensor, k: int) -> None:
        super()._fill(weight, k)
        shift = f"shift_{self.forget_gate}"
        wanted = shift if shift in self.params else "bias_ih"
        if not self._weight_names[k].startswith(f"{wanted}_l"):
            return
        gates = (*self.gates, *self.apart_gates, *self.input_gates)
        first = gates.index(self.forget_gate) * self.hidden_size if wanted == "bias_ih" else 0
        with torch.no_grad():
            weight[first : first + self.hidden_size] += self._constants()["forget_bias"]
