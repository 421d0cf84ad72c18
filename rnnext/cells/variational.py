"""LSTM and GRU with variational dropout: one mask for all steps of a sequence.

The mask is on h as it enters the recurrent products, which are therefore matrices of the cell's
own: weight_hi_l{k} [H, H] and so on in place of weight_hh_l{k}, and heads= is not for them.
"""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

import torch
from torch.nn.functional import linear

from rnnext.cells.options import ForgetBias, dropped
from rnnext.noise import Dropout

__all__ = ["VariationalGRU", "VariationalLSTM"]

SQUARE = ("hidden_size", "hidden_size")


class VariationalLSTM(ForgetBias):
    """An LSTM with variational dropout on the recurrent connections.

        i = sigmoid(W_ii x + b_i + W_hi (mask h))        f, o: likewise
        g =    tanh(W_ig x + b_g + W_hg (mask h))
        c' = f c + i g
        h' = o tanh(c')

    mask is 0 with probability variational_dropout, else 1 / (1 - variational_dropout): drawn for
    each unit of each sequence and the same at all steps; 1 in eval mode. The output is h', which
    no mask has touched.

    Gal and Ghahramani 2016 (arXiv:1512.05287). They mask the input of a layer in the same way,
    which is a product in front of it.

    Args:
        variational_dropout: the probability of dropping a unit of h.
        forget_bias: added to the initial bias of f.

    States:
        h, c: each [L*D, N, H].

    Example:
        >>> layer = VariationalLSTM(10, 20, variational_dropout=0.25)
        >>> y, (h_n, c_n) = layer(torch.randn(5, 3, 10))
    """

    input_gates = ("i", "f", "g", "o")
    states = ("h", "c")
    matrices = {"hi": SQUARE, "hf": SQUARE, "hg": SQUARE, "ho": SQUARE}
    constants = {"variational_dropout": 0.0, "forget_bias": 0.0}
    noise = {"mask": Dropout("variational_dropout", per="sequence")}

    @staticmethod
    def step(i, f, g, o, h, c, hi, hf, hg, ho, mask, variational_dropout):
        h = dropped(h, mask, variational_dropout)
        i, f = torch.sigmoid(i + linear(h, hi)), torch.sigmoid(f + linear(h, hf))
        g, o = torch.tanh(g + linear(h, hg)), torch.sigmoid(o + linear(h, ho))
        c = f * c + i * g
        return o * torch.tanh(c), c


class VariationalGRU(ForgetBias):
    """A GRU with variational dropout on the recurrent connections.

        r = sigmoid(W_ir x + b_r + W_hr (mask h))        z likewise
        n = tanh(W_in x + b_n + r (W_hn (mask h) + shift_n))
        h' = (1 - z) n + z h

    The mask, its source and the options are `VariationalLSTM`'s; shift_n is torch.nn.GRU's b_hn.

    Args:
        variational_dropout: the probability of dropping a unit of h.
        forget_bias: added to the initial bias of z, which keeps h.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = VariationalGRU(10, 20, variational_dropout=0.25)(torch.randn(5, 3, 10))
    """

    input_gates = ("r", "z", "n")
    matrices = {"hr": SQUARE, "hz": SQUARE, "hn": SQUARE}
    params = {"shift_n": None}
    constants = VariationalLSTM.constants
    noise = VariationalLSTM.noise
    forget_gate = "z"

    @staticmethod
    def step(r, z, n, h, hr, hz, hn, shift_n, mask, variational_dropout):
        masked = dropped(h, mask, variational_dropout)
        r, z = torch.sigmoid(r + linear(masked, hr)), torch.sigmoid(z + linear(masked, hz))
        n = torch.tanh(n + r * (linear(masked, hn) + shift_n))
        return (1 - z) * n + z * h
