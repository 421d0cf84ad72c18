"""Layer-normalised LSTM and GRU, in the forms that have been published.

LN(v) is (v - mean) / sqrt(variance + 1e-5) over all units that v has: with [a; b] of both together.
"""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from rnnext.cells.options import ForgetBias, dropped, zoned
from rnnext.noise import Bernoulli, Dropout

__all__ = ["DreamerGRU", "LayerNormBasicLSTM", "LayerNormGRU", "LayerNormLSTM"]

EPSILON = 1e-5


def normalised(*parts: Tensor) -> list[Tensor]:
    """LN of the parts together, without gain."""
    mean = added(parts).mean(-1, keepdim=True) / len(parts)
    centred = [part - mean for part in parts]
    variance = added([part.square() for part in centred]).mean(-1, keepdim=True) / len(parts)
    scale = torch.rsqrt(variance + EPSILON)
    return [part * scale for part in centred]


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of the parts, unit by unit."""
    return functools.reduce(torch.add, parts)


def params(gains: str, shifts: str) -> dict[str, float]:
    """Params `gain_...`, which begin with 1, and `shift_...`, with 0."""
    named = {f"gain_{name}": 1.0 for name in gains.split()}
    return {**named, **{f"shift_{name}": 0.0 for name in shifts.split()}}


class LayerNorm(ForgetBias):
    """What the layer-normalised cells share: by default they have no b_ih and b_hh.

    The shifts of the norms take their place. With bias=True both are added before the norms.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, *args, **options)


class LayerNormLSTM(LayerNorm):
    """The layer-normalised LSTM of the paper: input, recurrent part and cell state apart.

        [x_i; x_f; x_g; x_o] = LN(W_ih x)
        [h_i; h_f; h_g; h_o] = LN(W_hh h)
        i = sigmoid(gain_x_i x_i + gain_h_i h_i + shift_i)        f, o: likewise
        g =    tanh(gain_x_g x_g + gain_h_g h_g + shift_g)
        c~ = f c + i drop(g)
        h~ = o tanh(gain_c LN(c~) + shift_c)

    and then zoneout. The state c itself is not normalised. One shift for each gate stands for the
    paper's two and its bias, which are added up there.

    Ba, Kiros and Hinton 2016 (arXiv:1607.06450); haste's LayerNormLSTM is the same. Options and
    states: `LayerNormBasicLSTM`.

    Example:
        >>> y, (h_n, c_n) = LayerNormLSTM(10, 20)(torch.randn(5, 3, 10))
    """

    apart_gates = ("i", "f", "g", "o")
    states = ("h", "c")
    params = params("x_i x_f x_g x_o h_i h_f h_g h_o c", "i f g o c")
    constants = {"forget_bias": 0.0, "recurrent_dropout": 0.0, "zoneout_h": 0.0, "zoneout_c": 0.0}
    noise = {
        "drop": Dropout("recurrent_dropout"),
        "keep_h": Bernoulli("zoneout_h"),
        "keep_c": Bernoulli("zoneout_c"),
    }

    @staticmethod
    def step(
        i_x, f_x, g_x, o_x, i_h, f_h, g_h, o_h, h, c,
        gain_x_i, gain_x_f, gain_x_g, gain_x_o, gain_h_i, gain_h_f, gain_h_g, gain_h_o, gain_c,
        shift_i, shift_f, shift_g, shift_o, shift_c,
        drop, keep_h, keep_c, recurrent_dropout, zoneout_h, zoneout_c, hidden_size,
    ):  # fmt: skip
        i_x, f_x, g_x, o_x = normalised(i_x, f_x, g_x, o_x)
        i_h, f_h, g_h, o_h = normalised(i_h, f_h, g_h, o_h)
        i = torch.sigmoid(gain_x_i * i_x + gain_h_i * i_h + shift_i)
        f = torch.sigmoid(gain_x_f * f_x + gain_h_f * f_h + shift_f)
        g = torch.tanh(gain_x_g * g_x + gain_h_g * g_h + shift_g)
        o = torch.sigmoid(gain_x_o * o_x + gain_h_o * o_h + shift_o)
        new_c = f * c + i * dropped(g, drop, recurrent_dropout)
        new_h = o * torch.tanh(layer_norm(new_c, (hidden_size,), gain_c, shift_c, EPSILON))
        return zoned(h, new_h, keep_h, zoneout_h), zoned(c, new_c, keep_c, zoneout_c)


class LayerNormBasicLSTM(LayerNorm):
    """The layer-normalised LSTM of TensorFlow: each gate by itself, and the state that is kept.

        i = sigmoid(gain_i LN(W_ii x + W_hi h) + shift_i)        f, o: likewise
        g =    tanh(gain_g LN(W_ig x + W_hg h) + shift_g)
        c~ = gain_c LN(f c + i drop(g)) + shift_c
        h~ = o tanh(c~)

    and then zoneout, as of `rnnext.cells.LSTM`. Quicker than `LayerNormLSTM`: one norm for each
    gate in place of two.

    After Ba, Kiros and Hinton 2016 (arXiv:1607.06450), as in TensorFlow 1's
    contrib.rnn.LayerNormBasicLSTMCell, whose recurrent dropout (Semeniuta et al. 2016) it has too;
    that one's forget_bias, 1 by default, is added at every step, here to shift_f at the beginning.

    Args:
        bias: whether there are b_ih and b_hh, inside of the norms; default False.
        forget_bias: what shift_f begins with.
        recurrent_dropout: the probability of dropping a unit of g.
        zoneout_h, zoneout_c: the probability that a unit of h, of c, stays as it was.

    States:
        h, c: each [L*D, N, H].

    Example:
        >>> y, (h_n, c_n) = LayerNormBasicLSTM(10, 20, forget_bias=1.0)(torch.randn(5, 3, 10))
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    params = params("i f g o c", "i f g o c")
    constants = LayerNormLSTM.constants
    noise = LayerNormLSTM.noise

    @staticmethod
    def step(
        i, f, g, o, h, c, gain_i, gain_f, gain_g, gain_o, gain_c, shift_i, shift_f, shift_g,
        shift_o, shift_c, drop, keep_h, keep_c, recurrent_dropout, zoneout_h, zoneout_c,
        hidden_size,
    ):  # fmt: skip
        def norm(value, gain, shift):
            return layer_norm(value, (hidden_size,), gain, shift, EPSILON)

        i, f = torch.sigmoid(norm(i, gain_i, shift_i)), torch.sigmoid(norm(f, gain_f, shift_f))
        g, o = torch.tanh(norm(g, gain_g, shift_g)), torch.sigmoid(norm(o, gain_o, shift_o))
        new_c = norm(f * c + i * dropped(g, drop, recurrent_dropout), gain_c, shift_c)
        new_h = o * torch.tanh(new_c)
        return zoned(h, new_h, keep_h, zoneout_h), zoned(c, new_c, keep_c, zoneout_c)


class LayerNormGRU(LayerNorm):
    """The layer-normalised GRU of the paper: input and recurrent part apart.

        [x_r; x_z] = LN(W_irz x)        x_n = LN(W_in x)
        [h_r; h_z] = LN(W_hrz h)        h_n = LN(W_hn h)
        r = sigmoid(gain_x_r x_r + gain_h_r h_r + shift_r)        z likewise
        n = tanh(gain_x_n x_n + shift_x_n + r (gain_h_n h_n + shift_h_n))
        h~ = (1 - z) drop(n) + z h

    and then zoneout, as of `rnnext.cells.GRU`.

    Ba, Kiros and Hinton 2016 (arXiv:1607.06450), supplementary material. z keeps h, as in
    torch.nn.GRU and the authors' code; in the equations of the paper 1 - z does.

    Args:
        bias: whether there are b_ih and b_hh, inside of the norms; default False.
        forget_bias: what shift_z begins with.
        recurrent_dropout: the probability of dropping a unit of n.
        zoneout_h: the probability that a unit of h stays as it was.

    States:
        h: [L*D, N, H].

    Example:
        >>> y, h_n = LayerNormGRU(10, 20)(torch.randn(5, 3, 10))
    """

    apart_gates = ("r", "z", "n")
    params = params("x_r x_z x_n h_r h_z h_n", "r z x_n h_n")
    constants = {"forget_bias": 0.0, "recurrent_dropout": 0.0, "zoneout_h": 0.0}
    noise = {"drop": Dropout("recurrent_dropout"), "keep_h": Bernoulli("zoneout_h")}
    forget_gate = "z"

    @staticmethod
    def step(
        r_x, z_x, n_x, r_h, z_h, n_h, h,
        gain_x_r, gain_x_z, gain_x_n, gain_h_r, gain_h_z, gain_h_n,
        shift_r, shift_z, shift_x_n, shift_h_n,
        drop, keep_h, recurrent_dropout, zoneout_h,
    ):  # fmt: skip
        (r_x, z_x), (n_x,) = normalised(r_x, z_x), normalised(n_x)
        (r_h, z_h), (n_h,) = normalised(r_h, z_h), normalised(n_h)
        r = torch.sigmoid(gain_x_r * r_x + gain_h_r * r_h + shift_r)
        z = torch.sigmoid(gain_x_z * z_x + gain_h_z * z_h + shift_z)
        n = torch.tanh(gain_x_n * n_x + shift_x_n + r * (gain_h_n * n_h + shift_h_n))
        new_h = (1 - z) * dropped(n, drop, recurrent_dropout) + z * h
        return zoned(h, new_h, keep_h, zoneout_h)


class DreamerGRU(LayerNorm):
    """The layer-normalised GRU of Dreamer: the sum of input and recurrent part, all gates at once.

        [r; z; n] = LN(W_ih x + W_hh h)
        r = sigmoid(gain_r r + shift_r)        z likewise
        n = tanh(sigmoid(r) (gain_n n + shift_n))
        h~ = (1 - z) drop(n) + z h

    and then zoneout, as of `rnnext.cells.GRU`. Quicker than `LayerNormGRU`: one norm in place of
    four.

    Hafner et al. 2020 (DreamerV2, arXiv:2010.02193), whose update gate is 1 - z here, and begins
    with -1: forget_bias=1.0. Options and states: `LayerNormGRU`.

    Example:
        >>> y, h_n = DreamerGRU(10, 20, forget_bias=1.0)(torch.randn(5, 3, 10))
    """

    gates = ("r", "z", "n")
    params = params("r z n", "r z n")
    constants = LayerNormGRU.constants
    noise = LayerNormGRU.noise
    forget_gate = "z"

    @staticmethod
    def step(
        r, z, n, h, gain_r, gain_z, gain_n, shift_r, shift_z, shift_n, drop, keep_h,
        recurrent_dropout, zoneout_h,
    ):  # fmt: skip
        r, z, n = normalised(r, z, n)
        r, z = torch.sigmoid(gain_r * r + shift_r), torch.sigmoid(gain_z * z + shift_z)
        n = torch.tanh(r * (gain_n * n + shift_n))
        new_h = (1 - z) * dropped(n, drop, recurrent_dropout) + z * h
        return zoned(h, new_h, keep_h, zoneout_h)
