"""What a user may write for `--cell`."""

# ruff: noqa: RUF012
# mypy: ignore-errors

import torch
from torch.nn.functional import linear

import rnnext


class Gated(rnnext.Recurrent):
    """One state."""

    gates = ("z", "n")

    def step(z, n, h):
        z = torch.sigmoid(z)
        return z * h + (1 - z) * torch.tanh(n)


class Projected(rnnext.Recurrent):
    """An LSTM with a projection: two states of two widths, a size, constants of every type."""

    gates = ("i", "f", "g", "o")
    states = {"h": "proj_size", "c": "hidden_size"}
    matrices = {"hr": ("proj_size", "hidden_size")}
    sizes = ("proj_size",)
    constants = {"forget": 0.0, "linear_output": False, "times": 1, "gate": "sigmoid"}

    def step(i, f, g, o, c, hr, forget, linear_output, times, gate):
        squash = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[gate]
        c = squash(f + forget) * c + squash(i) * torch.tanh(g)
        output = c if linear_output else torch.tanh(c)
        return linear(times * squash(o) * output, hr), c


class Unfinished(rnnext.Recurrent):
    """A base of cells, none itself."""


class Settings:
    """No cell."""
