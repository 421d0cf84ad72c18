"""The GRU with options, and smaller gated units."""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

import torch
from torch.nn.functional import linear

from rnnext.cells.options import ForgetBias, clipped, dropped, function, zoned
from rnnext.noise import Bernoulli, Dropout
from rnnext.recurrent import Recurrent

__all__ = ["GRU", "LightGRU", "MinimalGatedUnit"]


class GRU(ForgetBias):
    """A GRU with other functions, clipping, recurrent dropout and zoneout.

        r = s(W_ir x + b_ir + W_hr h + b_hr)        z likewise
        n = a(W_in x + b_in + r (W_hn h + b_hn))
        h~ = (1 - z) drop(n) + z h                  clipped to -state_clip .. state_clip
        h' = keep_h h + (1 - keep_h) h~

    drop is 0 with probability recurrent_dropout, else 1 / (1 - recurrent_dropout), and 1 in eval
    mode; keep_h is 1 with probability zoneout_h, else 0, and in eval mode this probability. Both
    are drawn anew for each unit and step. With the default options it is `rnnext.GRU`, whose
    weights it has.

    Recurrent dropout without memory loss: Semeniuta, Severyn and Barth 2016 (arXiv:1603.05118).
    Zoneout: Krueger et al. 2016 (arXiv:1606.01305).

    Args:
        gate_function: s, a name in `rnnext.cells.FUNCTIONS`.
        activation: a, likewise.
        forget_bias: added to the initial bias of z, which keeps h.
        state_clip: the largest absolute value of h; 0: any.
        recurrent_dropout: the probability of dropping a unit of n.
        zoneout_h: the probability that a unit of h stays as it was.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = GRU(10, 20, recurrent_dropout=0.25)(torch.randn(5, 3, 10))
    """

    gates = ("r", "z")
    apart_gates = ("n",)
    constants = {
        "gate_function": "sigmoid",
        "activation": "tanh",
        "forget_bias": 0.0,
        "state_clip": 0.0,
        "recurrent_dropout": 0.0,
        "zoneout_h": 0.0,
    }
    noise = {"drop": Dropout("recurrent_dropout"), "keep_h": Bernoulli("zoneout_h")}
    forget_gate = "z"

    @staticmethod
    def step(
        r, z, n_x, n_h, h, drop, keep_h, gate_function, activation, state_clip, recurrent_dropout,
        zoneout_h,
    ):  # fmt: skip
        s, a = function(gate_function), function(activation)
        z, n = s(z), dropped(a(n_x + s(r) * n_h), drop, recurrent_dropout)
        return zoned(h, clipped((1 - z) * n + z * h, state_clip), keep_h, zoneout_h)


class LightGRU(ForgetBias):
    """A GRU without the reset gate, and with a rectifier: a third smaller, made for speech.

        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = a(W_in x + b_in + W_hn h + b_hn)
        h' = z h + (1 - z) n

    Ravanelli et al. 2018 (arXiv:1803.10225), without their batch normalisation of W_i x.

    Args:
        activation: a, a name in `rnnext.cells.FUNCTIONS`.
        forget_bias: added to the initial bias of z.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = LightGRU(10, 20)(torch.randn(5, 3, 10))
    """

    gates = ("z", "n")
    constants = {"activation": "relu", "forget_bias": 0.0}
    forget_gate = "z"

    @staticmethod
    def step(z, n, h, activation):
        z = torch.sigmoid(z)
        return z * h + (1 - z) * function(activation)(n)


class MinimalGatedUnit(Recurrent):
    """A GRU of one gate, which resets and updates: a third smaller.

        f = sigmoid(W_if x + b_if + W_hf h + b_hf)
        n = tanh(W_in x + b_in + W_u (f h))
        h' = (1 - f) h + f n

    Zhou et al. 2016 (arXiv:1603.09420). W_u is weight_u_l{k} [H, H]. Its product waits for f, so
    that a step is two products one after the other.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = MinimalGatedUnit(10, 20)(torch.randn(5, 3, 10))
    """

    gates = ("f",)
    input_gates = ("n",)
    matrices = {"u": ("hidden_size", "hidden_size")}

    @staticmethod
    def step(f, n, h, u):
        f = torch.sigmoid(f)
        return (1 - f) * h + f * torch.tanh(n + linear(f * h, u))
