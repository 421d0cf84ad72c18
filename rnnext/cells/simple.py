"""Networks without gates: Elman's with options, the one that begins as the identity, IndRNN."""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

import torch
from torch import Tensor, nn

from rnnext.cells.options import clipped, function, zoned
from rnnext.noise import Bernoulli
from rnnext.recurrent import Recurrent

__all__ = ["IRNN", "RNN", "IndRNN"]


class RNN(Recurrent):
    """Elman's network with any activation, clipping and zoneout.

        h~ = a(W_ih x + b_ih + W_hh h + b_hh)        clipped to -state_clip .. state_clip
        h' = keep_h h + (1 - keep_h) h~

    keep_h is 1 with probability zoneout_h, else 0, and in eval mode this probability. With the
    default options it is `rnnext.RNN`, whose weights it has.

    Elman 1990; zoneout: Krueger et al. 2016 (arXiv:1606.01305).

    Args:
        activation: a, a name in `rnnext.cells.FUNCTIONS`.
        state_clip: the largest absolute value of h; 0: any.
        zoneout_h: the probability that a unit of h stays as it was.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = RNN(10, 20, activation="softsign")(torch.randn(5, 3, 10))
    """

    gates = ("a",)
    constants = {"activation": "tanh", "state_clip": 0.0, "zoneout_h": 0.0}
    noise = {"keep_h": Bernoulli("zoneout_h")}

    @staticmethod
    def step(a, h, keep_h, activation, state_clip, zoneout_h):
        return zoned(h, clipped(function(activation)(a), state_clip), keep_h, zoneout_h)


class IRNN(RNN):
    """A rectifier network that begins by remembering: W_hh is the identity at first.

        h' = relu(W_ih x + b_ih + W_hh h + b_hh)

    W_hh begins as recurrent_scale times the identity, W_ih with N(0, 0.001^2), the biases with 0.
    With 0.01 for recurrent_scale it forgets soon, as the paper has it for speech. Options and
    states as of `RNN`; large gradients want to be clipped.

    Le, Jaitly and Hinton 2015 (arXiv:1504.00941).

    Args:
        recurrent_scale: of the identity.

    Example:
        >>> y, h_n = IRNN(10, 20)(torch.randn(5, 3, 10))
    """

    constants = {**RNN.constants, "activation": "relu", "recurrent_scale": 1.0}

    def _fill(self, weight: Tensor, k: int) -> None:
        name = self._weight_names[k]
        if name.startswith("bias"):
            nn.init.zeros_(weight)
        elif name.startswith("weight_ih"):
            nn.init.normal_(weight, std=0.001)
        else:  # with heads, the blocks of the diagonal
            size = weight.size(1)
            with torch.no_grad():
                block = self._constants()["recurrent_scale"] * torch.eye(size).to(weight)
                weight.copy_(block.repeat(weight.size(0) // size, 1))


class IndRNN(Recurrent):
    """A network whose units see themselves alone, each through a weight of its own.

        h' = a(W_ih x + b_ih + u h)

    There is no recurrent matrix, so nearly all its work is done for many steps at once, and many
    layers are stacked; further layers mix the units. u begins with U(0, 1), as the paper has it
    for long sequences; with a rectifier |u| must stay under 2^(1/T) or so over T steps, which is
    the training loop's to see to: layer.u_l0.data.clamp_(-limit, limit).

    Li et al. 2018 (arXiv:1803.04831), without their batch normalisation.

    Args:
        activation: a, a name in `rnnext.cells.FUNCTIONS`.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = IndRNN(10, 20, num_layers=6)(torch.randn(5, 3, 10))
    """

    input_gates = ("a",)
    params = {"u": nn.init.uniform_}
    constants = {"activation": "relu"}

    @staticmethod
    def step(a, h, u, activation):
        return function(activation)(a + u * h)
