"""Normalised cells as one writes them in PyTorch: a loop, with the gates side by side. And zoneout
step by step, with the input's product and the masks made where they are used.

Each takes x [T, N, C] and the parameters of the layer of rnnext.cells by name, and returns y.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, layer_norm, linear

Weights = dict[str, Tensor]


def together(w: Weights, kind: str, names: str) -> Tensor:
    """Gains or shifts of several gates as one vector."""
    return torch.cat([w[f"{kind}_{name}_l0"] for name in names.split()])


def layer_norm_lstm(x: Tensor, w: Weights) -> Tensor:
    gain = together(w, "gain", "h_i h_f h_g h_o")
    size = len(gain)
    rows = layer_norm(
        linear(x, w["weight_ih_l0"]),
        (size,),
        together(w, "gain", "x_i x_f x_g x_o"),
        together(w, "shift", "i f g o"),
    )
    h = c = x.new_zeros(x.size(1), size // 4)
    outputs = []
    for row in rows.unbind(0):
        a = row + layer_norm(linear(h, w["weight_hh_l0"]), (size,), gain)
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        normed = layer_norm(c, (size // 4,), w["gain_c_l0"], w["shift_c_l0"])
        h = o.sigmoid() * normed.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def layer_norm_gru(x: Tensor, w: Weights) -> Tensor:
    size = len(w["gain_x_n_l0"])
    gain = together(w, "gain", "h_r h_z")
    product = linear(x, w["weight_ih_l0"])
    rows = layer_norm(
        product[..., : 2 * size],
        (2 * size,),
        together(w, "gain", "x_r x_z"),
        together(w, "shift", "r z"),
    )
    rows_n = layer_norm(product[..., 2 * size :], (size,), w["gain_x_n_l0"], w["shift_x_n_l0"])
    h = x.new_zeros(x.size(1), size)
    outputs = []
    for row, row_n in zip(rows.unbind(0), rows_n.unbind(0), strict=True):
        a = linear(h, w["weight_hh_l0"])
        gates = row + layer_norm(a[:, : 2 * size], (2 * size,), gain)
        r, z = gates.sigmoid().chunk(2, 1)
        h_n = layer_norm(a[:, 2 * size :], (size,), w["gain_h_n_l0"], w["shift_h_n_l0"])
        h = torch.lerp((row_n + r * h_n).tanh(), h, z)
        outputs.append(h)
    return torch.stack(outputs)


def dreamer_gru(x: Tensor, w: Weights) -> Tensor:
    gain, shift = together(w, "gain", "r z n"), together(w, "shift", "r z n")
    size = len(gain)
    h = x.new_zeros(x.size(1), size // 3)
    outputs = []
    for row in linear(x, w["weight_ih_l0"]).unbind(0):
        a = layer_norm(row + linear(h, w["weight_hh_l0"]), (size,), gain, shift)
        r, z, n = a.chunk(3, 1)
        h = torch.lerp((r.sigmoid() * n).tanh(), h, z.sigmoid())
        outputs.append(h)
    return torch.stack(outputs)


def zoneout_lstm(x: Tensor, w: Weights) -> Tensor:
    """Of h with 0.05, of c with 0.5."""
    h = c = x.new_zeros(x.size(1), w["weight_hh_l0"].size(1))
    outputs = []
    for row in x:
        a = linear(row, w["weight_ih_l0"], w["bias_ih_l0"])
        i, f, g, o = (a + linear(h, w["weight_hh_l0"], w["bias_hh_l0"])).chunk(4, 1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        kept_h, kept_c = (torch.empty_like(h).bernoulli_(p) for p in (0.05, 0.5))
        h, c = kept_h * h + (1 - kept_h) * new_h, kept_c * c + (1 - kept_c) * new_c
        outputs.append(h)
    return torch.stack(outputs)


def batch_norm_lstm(x: Tensor, w: Weights) -> Tensor:
    """Without running averages, which take little."""

    def norm(v: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
        return batch_norm(v, None, None, gain, shift, training=True)

    size = w["gain_c_l0"].size(0)
    h = c = x.new_zeros(x.size(1), size)
    outputs = []
    for row in linear(x, w["weight_ih_l0"]).unbind(0):
        a = norm(row, w["gain_x_l0"], w["bias_l0"])
        a = a + norm(linear(h, w["weight_hh_l0"]), w["gain_h_l0"])
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, w["gain_c_l0"], w["shift_c_l0"]).tanh()
        outputs.append(h)
    return torch.stack(outputs)


LOOPS: dict[str, Callable[[Tensor, Weights], Tensor]] = {
    "zoneout": zoneout_lstm,
    "BatchNormLSTM": batch_norm_lstm,
    "LayerNormLSTM": layer_norm_lstm,
    "LayerNormGRU": layer_norm_gru,
    "DreamerGRU": dreamer_gru,
}
