"""The LSTM with options, and its relatives that are built otherwise."""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

from collections.abc import Sequence
from typing import ClassVar

import torch

from rnnext.cells.options import ForgetBias, clipped, dropped, function, zoned
from rnnext.noise import Bernoulli, Dropout
from rnnext.recurrent import Recurrent

__all__ = ["JANET", "LSTM", "SRU", "CoupledLSTM", "PeepholeLSTM"]


class LSTM(ForgetBias):
    """An LSTM with other functions, clipping, recurrent dropout and zoneout.

        i = s(W_ii x + b_ii + W_hi h + b_hi)        f, o: likewise
        g = a(W_ig x + b_ig + W_hg h + b_hg)
        c~ = f c + i drop(g)                        clipped to -cell_clip .. cell_clip
        h~ = o a(c~)                                clipped to -state_clip .. state_clip
        c' = keep_c c + (1 - keep_c) c~
        h' = keep_h h + (1 - keep_h) h~

    drop is 0 with probability recurrent_dropout, else 1 / (1 - recurrent_dropout), and 1 in eval
    mode; keep_h and keep_c are 1 with probability zoneout_h and zoneout_c, else 0, and in eval
    mode these probabilities. All are drawn anew for each unit and step. With the default options
    it is `rnnext.LSTM`, whose weights it has.

    Recurrent dropout without memory loss: Semeniuta, Severyn and Barth 2016 (arXiv:1603.05118).
    Zoneout: Krueger et al. 2016 (arXiv:1606.01305). Forget bias: Gers, Schmidhuber and Cummins
    2000; Jozefowicz, Zaremba and Sutskever 2015. Hard sigmoid: Courbariaux, Bengio and David 2015
    (arXiv:1511.00363). Clipped cells: Sak, Senior and Beaufays 2014 (arXiv:1402.1128).

    Args:
        gate_function: s, a name in `rnnext.cells.FUNCTIONS`.
        activation: a, likewise.
        forget_bias: added to the initial bias of f.
        cell_clip, state_clip: the largest absolute value of c and of h; 0: any.
        recurrent_dropout: the probability of dropping a unit of g.
        zoneout_h, zoneout_c: the probability that a unit of h, of c, stays as it was.

    States:
        h, c: each [L*D, N, H].

    Example:
        >>> layer = LSTM(10, 20, zoneout_h=0.05, zoneout_c=0.5, forget_bias=1.0)
        >>> y, (h_n, c_n) = layer(torch.randn(5, 3, 10))
    """

    gates: ClassVar[Sequence[str]] = ("i", "f", "g", "o")
    states = ("h", "c")
    constants = {
        "gate_function": "sigmoid",
        "activation": "tanh",
        "forget_bias": 0.0,
        "cell_clip": 0.0,
        "state_clip": 0.0,
        "recurrent_dropout": 0.0,
        "zoneout_h": 0.0,
        "zoneout_c": 0.0,
    }
    noise = {
        "drop": Dropout("recurrent_dropout"),
        "keep_h": Bernoulli("zoneout_h"),
        "keep_c": Bernoulli("zoneout_c"),
    }

    @staticmethod
    def step(
        i, f, g, o, h, c, drop, keep_h, keep_c, gate_function, activation, cell_clip, state_clip,
        recurrent_dropout, zoneout_h, zoneout_c,
    ):  # fmt: skip
        s, a = function(gate_function), function(activation)
        g = dropped(a(g), drop, recurrent_dropout)
        new_c = clipped(s(f) * c + s(i) * g, cell_clip)
        new_h = clipped(s(o) * a(new_c), state_clip)
        return zoned(h, new_h, keep_h, zoneout_h), zoned(c, new_c, keep_c, zoneout_c)


class PeepholeLSTM(LSTM):
    """An LSTM whose gates see the cell state: its own unit's, through one weight each.

        i = s(W_ii x + b_ii + W_hi h + b_hi + peep_i c)        f likewise
        g = a(W_ig x + b_ig + W_hg h + b_hg)
        c~ = f c + i drop(g)
        o = s(W_io x + b_io + W_ho h + b_ho + peep_o c~)
        h~ = o a(c~)

    and then clipping and zoneout, options and states as of `LSTM`. The output gate sees the new
    cell state. The peephole weights begin as the matrices do.

    Gers and Schmidhuber 2000; as here in Graves 2013 (arXiv:1308.0850).

    Example:
        >>> y, (h_n, c_n) = PeepholeLSTM(10, 20, cell_clip=50.0)(torch.randn(5, 3, 10))
    """

    params = {"peep_i": None, "peep_f": None, "peep_o": None}

    @staticmethod
    def step(
        i, f, g, o, h, c, peep_i, peep_f, peep_o, drop, keep_h, keep_c, gate_function, activation,
        cell_clip, state_clip, recurrent_dropout, zoneout_h, zoneout_c,
    ):  # fmt: skip
        s, a = function(gate_function), function(activation)
        i, f = s(i + peep_i * c), s(f + peep_f * c)
        g = dropped(a(g), drop, recurrent_dropout)
        new_c = clipped(f * c + i * g, cell_clip)
        new_h = clipped(s(o + peep_o * new_c) * a(new_c), state_clip)
        return zoned(h, new_h, keep_h, zoneout_h), zoned(c, new_c, keep_c, zoneout_c)


class CoupledLSTM(LSTM):
    """An LSTM that writes as much as it forgets: coupled input and forget gate, CIFG.

        f = s(W_if x + b_if + W_hf h + b_hf)        o likewise
        g = a(W_ig x + b_ig + W_hg h + b_hg)
        c~ = f c + (1 - f) drop(g)
        h~ = o a(c~)

    and then clipping and zoneout, options and states as of `LSTM`. Three gates, f, g, o, make it
    a quarter smaller.

    Greff et al. 2015 (arXiv:1503.04069).

    Example:
        >>> y, (h_n, c_n) = CoupledLSTM(10, 20)(torch.randn(5, 3, 10))
    """

    gates = ("f", "g", "o")

    @staticmethod
    def step(
        f, g, o, h, c, drop, keep_h, keep_c, gate_function, activation, cell_clip, state_clip,
        recurrent_dropout, zoneout_h, zoneout_c,
    ):  # fmt: skip
        s, a = function(gate_function), function(activation)
        f, g = s(f), dropped(a(g), drop, recurrent_dropout)
        new_c = clipped(f * c + (1 - f) * g, cell_clip)
        new_h = clipped(s(o) * a(new_c), state_clip)
        return zoned(h, new_h, keep_h, zoneout_h), zoned(c, new_c, keep_c, zoneout_c)


class JANET(ForgetBias):
    """An LSTM of the forget gate alone: half its size.

        f = W_if x + b_if + W_hf h + b_hf
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        h' = sigmoid(f) h + (1 - sigmoid(f - beta)) g

    van der Westhuizen and Lasenby 2018 (arXiv:1804.04849); their initial biases reach from 0 to
    log(T - 1) for sequences of T steps, which forget_bias can stand in for.

    Args:
        beta: how much less is written than forgotten.
        forget_bias: added to the initial bias of f.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = JANET(10, 20, forget_bias=2.0)(torch.randn(5, 3, 10))
    """

    gates = ("f", "g")
    constants = {"beta": 1.0, "forget_bias": 0.0}

    @staticmethod
    def step(f, g, h, beta):
        return torch.sigmoid(f) * h + (1 - torch.sigmoid(f - beta)) * torch.tanh(g)


class SRU(Recurrent):
    """A simple recurrent unit: no recurrent matrix, so nearly all its work is done for many steps
    at once.

        f = sigmoid(W_f x + b_f + v_f c)
        r = sigmoid(W_r x + b_r + v_r c)
        c' = f c + (1 - f) (W_u x + b_u)
        h' = r c' + (1 - r) (W_s x + b_s)

    Lei et al. 2018 (arXiv:1709.02755), its second version; W_s x stands for the x of their highway
    connection, which there has the width of h already.

    States:
        h, c: each [L*D, N, H].

    Example:
        >>> y, (h_n, c_n) = SRU(10, 20, num_layers=4)(torch.randn(5, 3, 10))
    """

    input_gates = ("u", "f", "r", "s")
    states = ("h", "c")
    params = {"v_f": None, "v_r": None}

    @staticmethod
    def step(u, f, r, s, c, v_f, v_r):
        f, r = torch.sigmoid(f + v_f * c), torch.sigmoid(r + v_r * c)
        c = f * c + (1 - f) * u
        return r * c + (1 - r) * s, c
