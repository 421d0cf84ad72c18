"""The steps of rnnext.cells once more, written from the papers: plain PyTorch, whole matrices.

A step is a function of the weights of a layer by name (without `_l0`), its options, x [N, C], the
states and the masks of this step by name; it returns the new states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = SimpleNamespace
Options = Mapping[str, Any]
Masks = Mapping[str, Tensor]
Step = Callable[[Weights, Options, Tensor, tuple[Tensor, ...], Masks], tuple[Tensor, ...]]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda a: 1 / (1 + torch.exp(-a)),
    "tanh": torch.tanh,
    "relu": lambda a: a.clamp(min=0),
    "hard_sigmoid": lambda a: (a / 6 + 0.5).clamp(0, 1),
    "keras_hard_sigmoid": lambda a: (a / 5 + 0.5).clamp(0, 1),
    "softsign": lambda a: a / (1 + a.abs()),
    "identity": lambda a: a,
}


def run(
    step: Step, w: Weights, o: Options, x: Tensor, states: Sequence[Tensor], masks: Sequence[Masks]
) -> list[Tensor]:
    """All steps of a sequence [T, N, C]: outputs and final states."""
    outputs, now = [], tuple(states)
    for row, mask in zip(x, masks, strict=True):
        now = step(w, o, row, now, mask)
        outputs.append(now[0])
    return [torch.stack(outputs), *now]


def summed(w: Weights, x: Tensor, h: Tensor) -> Tensor:
    return F.linear(x, w.weight_ih, w.bias_ih) + F.linear(h, w.weight_hh, w.bias_hh)


def clip(value: Tensor, limit: float) -> Tensor:
    return torch.minimum(torch.maximum(value, value.new_tensor(-limit)), value.new_tensor(limit))


def lstm_end(
    o: Options, masks: Masks, h: Tensor, c: Tensor, new_h: Tensor, new_c: Tensor
) -> tuple[Tensor, ...]:
    """Zoneout: a unit keeps its old value where its mask is 1."""
    if o["zoneout_h"] > 0:
        d = masks["keep_h"]
        new_h = d * h + (1 - d) * new_h
    if o["zoneout_c"] > 0:
        d = masks["keep_c"]
        new_c = d * c + (1 - d) * new_c
    return new_h, new_c


def lstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    h, c = s
    sigma, phi = FUNCTIONS[o["gate_function"]], FUNCTIONS[o["activation"]]
    i, f, g, out = summed(w, x, h).chunk(4, 1)
    g = phi(g) * masks.get("drop", 1)
    new_c = sigma(f) * c + sigma(i) * g
    if o["cell_clip"]:
        new_c = clip(new_c, o["cell_clip"])
    new_h = sigma(out) * phi(new_c)
    if o["state_clip"]:
        new_h = clip(new_h, o["state_clip"])
    return lstm_end(o, masks, h, c, new_h, new_c)


def peephole_lstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    h, c = s
    i, f, g, out = summed(w, x, h).chunk(4, 1)
    new_c = torch.sigmoid(f + w.peep_f * c) * c + torch.sigmoid(i + w.peep_i * c) * torch.tanh(g)
    return torch.sigmoid(out + w.peep_o * new_c) * torch.tanh(new_c), new_c


def coupled_lstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    h, c = s
    f, g, out = summed(w, x, h).chunk(3, 1)
    f = torch.sigmoid(f)
    new_c = f * c + (1 - f) * torch.tanh(g)
    return torch.sigmoid(out) * torch.tanh(new_c), new_c


def janet(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    (h,) = s
    f, g = summed(w, x, h).chunk(2, 1)
    written = 1 - torch.sigmoid(f - o["beta"])
    return (torch.sigmoid(f) * h + written * torch.tanh(g),)


def sru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    _, c = s
    u, f, r, skip = F.linear(x, w.weight_ih, w.bias_ih).chunk(4, 1)
    f, r = torch.sigmoid(f + w.v_f * c), torch.sigmoid(r + w.v_r * c)
    c = f * c + (1 - f) * u
    return r * c + (1 - r) * skip, c


def variational_lstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    h, c = s
    u = torch.cat([w.weight_hi, w.weight_hf, w.weight_hg, w.weight_ho])
    a = F.linear(x, w.weight_ih, w.bias_ih) + F.linear(h * masks.get("mask", 1), u)
    i, f, g, out = a.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(out) * torch.tanh(c), c


def variational_gru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    (h,) = s
    u = torch.cat([w.weight_hr, w.weight_hz, w.weight_hn])
    x_r, x_z, x_n = F.linear(x, w.weight_ih, w.bias_ih).chunk(3, 1)
    h_r, h_z, h_n = F.linear(h * masks.get("mask", 1), u).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * (h_n + w.shift_n))
    return ((1 - z) * n + z * h,)


def together(w: Weights, kind: str, names: str) -> Tensor:
    """Gains or shifts of several gates as one vector."""
    return torch.cat([getattr(w, f"{kind}_{name}") for name in names.split()])


def layer_norm_lstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    """Ba et al.: both norms over all 4 H of the vector."""
    h, c = s
    size = h.size(1)
    shift = together(w, "shift", "i f g o")
    gain_x, gain_h = together(w, "gain", "x_i x_f x_g x_o"), together(w, "gain", "h_i h_f h_g h_o")
    a_x = F.layer_norm(x @ w.weight_ih.t(), (4 * size,), gain_x, shift)
    a_h = F.layer_norm(h @ w.weight_hh.t(), (4 * size,), gain_h)
    i, f, g, out = (a_x + a_h).chunk(4, 1)
    g = torch.tanh(g) * masks.get("drop", 1)
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
    new_h = torch.sigmoid(out) * torch.tanh(F.layer_norm(new_c, (size,), w.gain_c, w.shift_c))
    return lstm_end(o, masks, h, c, new_h, new_c)


def layer_norm_basic_lstm(
    w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks
) -> Any:
    """As TensorFlow 1's call(): one product of [x, h], each gate normed, the normed state kept."""
    h, c = s

    def norm(value: Tensor, name: str) -> Tensor:
        gain, shift = getattr(w, f"gain_{name}"), getattr(w, f"shift_{name}")
        return F.layer_norm(value, (value.size(1),), gain, shift)

    a = torch.cat([x, h], 1) @ torch.cat([w.weight_ih, w.weight_hh], 1).t()
    i, f, g, out = (norm(part, name) for part, name in zip(a.chunk(4, 1), "ifgo", strict=True))
    g = torch.tanh(g) * masks.get("drop", 1)
    new_c = norm(c * torch.sigmoid(f) + torch.sigmoid(i) * g, "c")
    return lstm_end(o, masks, h, c, torch.tanh(new_c) * torch.sigmoid(out), new_c)


def slstm(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    """Beck et al., heads as dense blocks of a larger matrix."""
    h, c, n, m = s
    size, units = h.size(1), w.weight_hh.size(1)
    blocks = w.weight_hh.view(4, size // units, units, units)
    r = torch.cat([torch.block_diag(*gate) for gate in blocks])
    a = F.linear(x, w.weight_ih, w.bias_ih) + F.linear(h, r, w.bias_hh)
    i, f, z, out = a.chunk(4, 1)
    log_f = f if o["forget_gate_function"] == "exp" else -torch.log(1 + torch.exp(-f))
    # As the authors' code: the first step, whose n is 0, has nothing to be compared with.
    top = i if (n == 0).all() else torch.maximum(log_f + m, i)
    i, f = torch.exp(i - top), torch.exp(log_f + m - top)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(out) * (c / n), c, n, top


def gru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    (h,) = s
    sigma, phi = FUNCTIONS[o["gate_function"]], FUNCTIONS[o["activation"]]
    x_r, x_z, x_n = F.linear(x, w.weight_ih, w.bias_ih).chunk(3, 1)
    h_r, h_z, h_n = F.linear(h, w.weight_hh, w.bias_hh).chunk(3, 1)
    r, z = sigma(x_r + h_r), sigma(x_z + h_z)
    n = phi(x_n + r * h_n) * masks.get("drop", 1)
    new = (1 - z) * n + z * h
    if o["state_clip"]:
        new = clip(new, o["state_clip"])
    d = masks.get("keep_h", 0)
    return (d * h + (1 - d) * new,)


def light_gru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    (h,) = s
    z, n = summed(w, x, h).chunk(2, 1)
    z = torch.sigmoid(z)
    return (z * h + (1 - z) * FUNCTIONS[o["activation"]](n),)


def minimal_gated_unit(
    w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks
) -> Any:
    (h,) = s
    x_f, x_n = F.linear(x, w.weight_ih, w.bias_ih).chunk(2, 1)
    f = torch.sigmoid(x_f + F.linear(h, w.weight_hh, w.bias_hh))
    return ((1 - f) * h + f * torch.tanh(x_n + (f * h) @ w.weight_u.t()),)


def layer_norm_gru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    """Ba et al., supplementary material: r and z normed together, n by itself."""
    (h,) = s
    size = h.size(1)

    def parts(value: Tensor, side: str, shift: Tensor | None, shift_n: Tensor) -> Any:
        gates, n = value.split([2 * size, size], 1)
        gain = together(w, "gain", f"{side}_r {side}_z")
        gates = F.layer_norm(gates, (2 * size,), gain, shift)
        return gates, F.layer_norm(n, (size,), getattr(w, f"gain_{side}_n"), shift_n)

    a_x, x_n = parts(x @ w.weight_ih.t(), "x", together(w, "shift", "r z"), w.shift_x_n)
    a_h, h_n = parts(h @ w.weight_hh.t(), "h", None, w.shift_h_n)
    r, z = torch.sigmoid(a_x + a_h).chunk(2, 1)
    n = torch.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * h,)


def dreamer_gru(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    """As Dreamer's cell, whose update gate is 1 - z."""
    (h,) = s
    a = torch.cat([x, h], 1) @ torch.cat([w.weight_ih, w.weight_hh], 1).t()
    gain, shift = together(w, "gain", "r z n"), together(w, "shift", "r z n")
    r, z, n = F.layer_norm(a, (a.size(1),), gain, shift).chunk(3, 1)
    update = 1 - torch.sigmoid(z)
    return (update * torch.tanh(torch.sigmoid(r) * n) + (1 - update) * h,)


def rnn(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    (h,) = s
    new = FUNCTIONS[o["activation"]](summed(w, x, h))
    d = masks.get("keep_h", 0)
    return (d * h + (1 - d) * new,)


def ind_rnn(w: Weights, o: Options, x: Tensor, s: tuple[Tensor, ...], masks: Masks) -> Any:
    a = F.linear(x, w.weight_ih, w.bias_ih) + w.u * s[0]
    return (FUNCTIONS[o["activation"]](a),)


STEPS: dict[str, Step] = {
    "LSTM": lstm,
    "PeepholeLSTM": peephole_lstm,
    "CoupledLSTM": coupled_lstm,
    "JANET": janet,
    "SRU": sru,
    "VariationalLSTM": variational_lstm,
    "LayerNormLSTM": layer_norm_lstm,
    "LayerNormBasicLSTM": layer_norm_basic_lstm,
    "SLSTM": slstm,
    "GRU": gru,
    "LightGRU": light_gru,
    "MinimalGatedUnit": minimal_gated_unit,
    "VariationalGRU": variational_gru,
    "LayerNormGRU": layer_norm_gru,
    "DreamerGRU": dreamer_gru,
    "RNN": rnn,
    "IRNN": rnn,
    "IndRNN": ind_rnn,
}
"""By the names of rnnext.cells."""
