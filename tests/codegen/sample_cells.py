"""Cells for the tests of the code generator."""

import torch
from torch.nn.functional import linear

from rnnext.cell import Dropout, Param, declare

CELLS = {}


def cell(**parts):
    """Declare the cell whose step follows."""

    def keep(step):
        CELLS[step.__name__] = declare(step.__name__, step, **parts)
        return step

    return keep


@cell(gates=("i", "f", "g", "o"), states=("h", "c"))
def LSTM(i, f, g, o, c):
    i = torch.sigmoid(i)
    f = torch.sigmoid(f)
    g = torch.tanh(g)
    o = torch.sigmoid(o)
    c = f * c + i * g
    return o * torch.tanh(c), c


@cell(gates=("r", "z"), apart_gates=("n",))
def GRU(r, z, n_x, n_h, h):
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


@cell(gates=("z", "n"))
def LightGRU(z, n, h):
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.relu(n)


@cell(gates=("a",))
def TanhRNN(a):
    return torch.tanh(a)


@cell(gates=("a",))
def ReluRNN(a):
    return torch.relu(a)


@cell(gates=("f",), input_gates=("n",), matrices={"U": ("hidden_size", "hidden_size")})
def MGU(f, n, h, U):
    f = torch.sigmoid(f)
    n = torch.tanh(n + linear(f * h, U))
    return (1 - f) * h + f * n


@cell(
    gates=("i", "f", "g", "o"),
    states={"h": "proj_size", "c": "hidden_size"},
    sizes=("proj_size",),
    matrices={"hr": ("proj_size", "hidden_size")},
)
def LSTMP(i, f, g, o, c, hr):
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    return linear(o * torch.tanh(c), hr), c


@cell(input_gates=("x",), params={"u": 1.0})
def IndRNN(x, u, h):
    return torch.relu(x + u * h)


def _norm(x, scale):
    d = x - x.mean(-1, keepdim=True)
    return scale * d * torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-5)


@cell(
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    params=dict.fromkeys(("s_i", "s_f", "s_g", "s_o", "s_c"), 1.0),
)
def LayerNormLSTM(i, f, g, o, c, s_i, s_f, s_g, s_o, s_c):
    i = torch.sigmoid(_norm(i, s_i))
    f = torch.sigmoid(_norm(f, s_f))
    g = torch.tanh(_norm(g, s_g))
    o = torch.sigmoid(_norm(o, s_o))
    c = f * c + i * g
    return o * torch.tanh(_norm(c, s_c)), c


@cell(
    gates=("a",),
    states={"h": "hidden_size", "m": 1},
    params={"rate": Param(0.5, size=1)},
    noise={"drop": Dropout(0.1), "shake": Dropout(0.5, size=1, per="sequence")},
)
def RunningNorm(a, h, m, rate, drop, shake):
    decay = torch.exp(-rate * rate)
    m = decay * m + shake * torch.log1p((a * h).pow(2).sum(-1, keepdim=True))
    h = torch.where(a > m, drop * a, 0.5 * h) / torch.sqrt(1 + m * m)
    return h, m


@cell(gates=("a", "b"), states=("h", "c", "d"), matrices={"W": ("hidden_size", "hidden_size")})
def Rotation(a, b, h, c, d, W):
    """The old states are read after new ones are known."""
    total = (h * c).sum(-1, keepdim=True)
    w = linear(torch.sigmoid(a) * d, W)
    return d * a, h + b, torch.tanh(w) * c + total * h


@cell(gates=("exp", "u", "class_"), states=("h", "U"), constants={"big": float("inf")})
def switch(exp, u, class_, h, U, big):
    """Names that mean something else in C++, and numbers that are hard to write."""
    template = torch.exp(0.1 * exp) / 3
    V = torch.minimum(torch.abs(u), torch.full_like(u, 1e-3) * class_)
    σ = torch.where((V > 0) & ~(class_ < h), template - (V - h), -(-0.3 * V))
    return torch.clamp(σ, -big, 2.5) - torch.floor(U), σ.pow(1.5).nan_to_num(0.0, 1e3, -1e3) + U


@cell(gates=("a",), matrices={"V": ("hidden_size", "hidden_size")})
def StateProduct(a, h, V):
    return torch.tanh(a) * linear(h, V) + linear(torch.sin(a), V) + linear(torch.ones_like(h), V)


@cell(
    gates=("a",),
    states=("h", "c"),
    matrices={"V": ("hidden_size", "hidden_size")},
    noise={"keep": Dropout(0.1)},
)
def Detached(a, h, c, V, keep):
    """Products to whose operands no gradient flows back: two of them are states."""
    made = linear(h.detach(), V) + linear(c.data, V) + linear(keep, V) + linear(c, V)
    return torch.tanh(a * made + h), torch.tanh(made) + 0.5 * c
