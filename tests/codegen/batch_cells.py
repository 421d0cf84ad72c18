"""Cells with sums over the batch, for the tests of the code generator."""

import torch

from rnnext.cell import Param, declare

EPS = 1e-5


def normed(x, gain, given=None):
    mean = x.mean(0) if given is None else given[0]
    d = x - mean
    var = (d * d).mean(0) if given is None else given[1]
    return gain * d * torch.rsqrt(var + EPS)


def lstm_of(x, h, c, gain_x, gain_h, bias, gain_c, shift_c, given=(None,) * 9):
    """By gates: i, f, g, o."""
    a = [
        normed(x[k], gain_x[k], given[2 * k]) + normed(h[k], gain_h[k], given[2 * k + 1]) + bias[k]
        for k in range(4)
    ]
    c = torch.sigmoid(a[1]) * c + torch.sigmoid(a[0]) * torch.tanh(a[2])
    return torch.sigmoid(a[3]) * torch.tanh(normed(c, gain_c, given[8]) + shift_c), c


def lstm(
    i_x, i_h, f_x, f_h, g_x, g_h, o_x, o_h, c, gain_x_i, gain_x_f, gain_x_g, gain_x_o,
    gain_h_i, gain_h_f, gain_h_g, gain_h_o, bias_i, bias_f, bias_g, bias_o, gain_c, shift_c,
):  # fmt: skip
    x, h = (i_x, f_x, g_x, o_x), (i_h, f_h, g_h, o_h)
    gain_x = (gain_x_i, gain_x_f, gain_x_g, gain_x_o)
    gain_h = (gain_h_i, gain_h_f, gain_h_g, gain_h_o)
    bias = (bias_i, bias_f, bias_g, bias_o)
    return lstm_of(x, h, c, gain_x, gain_h, bias, gain_c, shift_c)


LSTM = {
    "apart_gates": ("i", "f", "g", "o"),
    "states": ("h", "c"),
    "params": {
        **{f"{name}_{gate}": 0.1 for name in ("gain_x", "gain_h", "bias") for gate in "ifgo"},
        "gain_c": 0.1,
        "shift_c": 0.0,
    },
}


def centred(a, h, p):
    return torch.tanh(p * (a - a.mean(0))) + h


def spellings(a, h, p, q):
    """Axes kept and counted from the end, and torch's own moments."""
    a = (a - a.mean(dim=0, keepdim=True)) / (a.var(0, unbiased=False, keepdim=True) + EPS).sqrt()
    b = h * torch.std(h, dim=-2) + h.sum(-2) / h.shape[0]
    return torch.tanh(p.exp().unsqueeze(0) * a + q[None, :] * b), a.mean(0).expand_as(a) * p + h


def of_uniform(a, h, p, q):
    """Sums over the batch of what is the same in all rows, and of what only params scale."""
    mean = (a * p).mean(0)
    repeated = (mean * q).expand_as(a).sum(0) / 7
    return torch.tanh(a * repeated) + torch.where(mean > 0, mean, mean * q) * h


def of_a_product(a, h, w, p):
    made = torch.nn.functional.linear(a - a.mean(0), w)
    return torch.tanh(p * (made - made.mean(0)) / (made.var(0) + EPS).sqrt()) + h


def of_a_mean(a, h, w):
    """A product's operand and a new state are the same in all rows."""
    mean = a.mean(0).expand_as(a)
    return mean, torch.nn.functional.linear(mean.tanh(), w) * mean


def of_two_widths(a, h, c, w, p):
    c = c * (a * a).mean(0).rsqrt() + a
    made = torch.nn.functional.linear(c.tanh(), w)
    return p * (made - made.mean(0)), c


A = {"gates": ("a",)}
SQUARE = {"w": ("hidden_size", "hidden_size")}
CELLS = {
    "LSTM": declare("BatchNormLSTM", lstm, **LSTM),
    "centred": declare("Centred", centred, **A, params={"p": 1.0}),
    "spellings": declare("Spellings", spellings, **A, states=("h", "b"), params={"p": 1, "q": 1}),
    "uniform": declare("Uniform", of_uniform, **A, params={"p": 1.0, "q": 1.0}),
    "product": declare("Product", of_a_product, **A, params={"p": 1.0}, matrices=SQUARE),
    "mean": declare("Mean", of_a_mean, **A, states=("h", "m"), matrices=SQUARE),
    "widths": declare(
        "Widths",
        of_two_widths,
        **A,
        states={"h": "proj", "c": "hidden_size"},
        sizes=("proj",),
        params={"p": Param(1.0, "proj")},
        matrices={"w": ("proj", "hidden_size")},
    ),
}
