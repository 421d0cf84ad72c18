"""Cells from papers, and cells that take every part of the engine: as a user would write them."""
# ruff: noqa: RUF012

import torch
import torch.nn.functional as F
from torch.nn.functional import linear

import rnnext
from rnnext import Param

HIDDEN = "hidden_size"


class LSTM(rnnext.Recurrent):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(i, f, g, o, c):
        new = torch.sigmoid(i).mul(torch.tanh(g)) + torch.sigmoid(f).mul(c)
        return torch.tanh(new).mul(torch.sigmoid(o)), new


class GRU(rnnext.Recurrent):
    """Cho et al. 2014, the reset gate after the product."""

    gates = ("r", "z")
    apart_gates = ("n",)

    def step(r, z, n_x, n_h, h):
        n = torch.tanh(torch.addcmul(n_x, torch.sigmoid(r), n_h))
        return torch.lerp(n, h, torch.sigmoid(z))


class Elman(rnnext.Recurrent):
    """Elman 1990."""

    gates = ("a",)

    def step(a):
        return torch.tanh(a)


class LightGRU(rnnext.Recurrent):
    """Ravanelli et al. 2018."""

    gates = ("z", "n")

    def step(z, n, h):
        z = torch.sigmoid(z)
        return z * h + (1 - z) * torch.relu(n)


class MinimalGated(rnnext.Recurrent):
    """Zhou et al. 2016: a second product in the step, of what the gate lets through."""

    gates = ("f",)
    input_gates = ("n",)
    matrices = {"u": (HIDDEN, HIDDEN)}

    def step(f, n, h, u):
        f = torch.sigmoid(f)
        return (1 - f) * h + f * torch.tanh(n + linear(f * h, u))


class ProjectedLSTM(rnnext.Recurrent):
    """Sak, Senior and Beaufays 2014."""

    gates = ("i", "f", "g", "o")
    states = {"h": "proj_size", "c": HIDDEN}
    matrices = {"hr": ("proj_size", HIDDEN)}
    sizes = ("proj_size",)

    def step(i, f, g, o, c, hr):
        h, c = LSTM.step(i, f, g, o, c)
        return h @ hr.T, c


class Peephole(rnnext.Recurrent):
    """Gers and Schmidhuber 2000: the gates see c, the output gate the new one."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    params = {"p_i": None, "p_f": 0.1, "p_o": torch.nn.init.ones_}

    def step(i, f, g, o, c, p_i, p_f, p_o):
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


class Coupled(rnnext.Recurrent):
    """Greff et al. 2017: an LSTM that writes as much as it forgets."""

    gates = ("f", "g", "o")
    states = ("h", "c")

    def step(f, g, o, c):
        c = torch.lerp(torch.tanh(g), c, torch.sigmoid(f))
        return torch.sigmoid(o) * torch.tanh(c), c


class IndRNN(rnnext.Recurrent):
    """Li et al. 2018: every unit sees itself alone, so there is no recurrent matrix."""

    input_gates = ("a",)
    params = {"u": None}

    def step(a, h, u):
        return torch.relu(a + u * h)


class SRU(rnnext.Recurrent):
    """Lei et al. 2018, its second version."""

    input_gates = ("u", "f", "r", "skip")
    states = ("h", "c")
    params = {"v_f": None, "v_r": None}

    def step(u, f, r, skip, c, v_f, v_r):
        f = torch.sigmoid(f + v_f * c)
        r = torch.sigmoid(r + v_r * c)
        c = f * c + (1 - f) * u
        return r * c + (1 - r) * skip, c


class Leaky(rnnext.Recurrent):
    """Leaky integrators (Jaeger et al. 2007)."""

    gates = ("a",)
    constants = {"leak": 0.1, "activation": "tanh"}

    def step(a, h, leak, activation):
        return (1 - leak) * h + leak * (torch.tanh(a) if activation == "tanh" else torch.relu(a))


class LayerNormLSTM(rnnext.Recurrent):
    """Ba, Kiros and Hinton 2016."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    params = dict.fromkeys(("gamma_i", "gamma_f", "gamma_g", "gamma_o", "gamma_c"), 1.0)
    params |= {"beta_c": 0.0}

    def step(i, f, g, o, c, gamma_i, gamma_f, gamma_g, gamma_o, gamma_c, beta_c, hidden_size):
        def norm(value, gamma, beta=None):
            return F.layer_norm(value, (hidden_size,), gamma, beta)

        i, f, o = norm(i, gamma_i), norm(f, gamma_f), norm(o, gamma_o)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(norm(g, gamma_g))
        return torch.sigmoid(o) * torch.tanh(norm(c, gamma_c, beta_c)), c


class RMSNormGRU(rnnext.Recurrent):
    """Zhang and Sennrich 2019; the norm written out."""

    gates = ("r", "z")
    apart_gates = ("n",)
    params = {"gamma": 1.0, "shift": Param(0.0, size=1)}

    def step(r, z, n_x, n_h, h, gamma, shift):
        scale = torch.rsqrt(n_h.square().mean(-1, keepdim=True) + 1e-5)
        n = torch.tanh(n_x + torch.sigmoid(r) * n_h * scale * gamma + shift)
        z = torch.sigmoid(z)
        return (1 - z) * n + z * h


class SLSTM(rnnext.Recurrent):
    """Beck et al. 2024: exponential gates, a normaliser, and a maximum that keeps them in range."""

    gates = ("i", "f", "z", "o")
    states = ("h", "c", "n", "m")

    def step(i, f, z, o, c, n, m):
        f = F.logsigmoid(f)
        top = torch.maximum(f + m, i)
        i, f = torch.exp(i - top), torch.exp(f + m - top)
        c = f * c + i * torch.tanh(z)
        n = f * n + i
        return torch.sigmoid(o) * c / torch.maximum(n.abs(), torch.exp(-top)), c, n, top


class Zoneout(rnnext.Recurrent):
    """Krueger et al. 2017: units keep their old states at random."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    constants = {"zoneout_h": 0.1, "zoneout_c": 0.5}
    noise = {"keep_h": rnnext.Bernoulli("zoneout_h"), "keep_c": rnnext.Bernoulli("zoneout_c")}

    def step(i, f, g, o, h, c, keep_h, keep_c):
        new_h, new_c = LSTM.step(i, f, g, o, c)
        return keep_h * h + (1 - keep_h) * new_h, keep_c * c + (1 - keep_c) * new_c


class Variational(rnnext.Recurrent):
    """Gal and Ghahramani 2016: one dropout mask for all steps, on what the matrix multiplies."""

    input_gates = ("a",)
    matrices = {"u": (HIDDEN, HIDDEN)}
    constants = {"p": 0.3}
    noise = {"mask": rnnext.Dropout("p", per="sequence")}

    def step(a, h, u, mask):
        return torch.tanh(a + linear(mask * h, u))


class Noisy(rnnext.Recurrent):
    """Lim et al. 2021: Gaussian noise that grows with the state."""

    gates = ("a",)
    constants = {"std": 0.2}
    noise = {
        "e": rnnext.Normal(0.0, "std"),
        "level": rnnext.Normal(1.0, 0.1, size=1, per="sequence"),
    }

    def step(a, h, e, level):
        return 0.5 * h + torch.tanh(a) + level * e * (1 + h * h).sqrt()


class RandomSlope(rnnext.Recurrent):
    """A rectifier with random slopes (Xu et al. 2015)."""

    gates = ("a",)
    noise = {"slope": rnnext.Uniform(1 / 8, 1 / 3), "gain": rnnext.Dropout(0.25, size=1)}

    def step(a, h, slope, gain):
        return 0.5 * h + gain * torch.where(a >= 0, a, slope * a)


class RunningMean(rnnext.Recurrent):
    """A state of one value a row: what the units were on average."""

    gates = ("a", "b")
    states = {"h": HIDDEN, "m": 1}
    params = {"rate": Param(0.3, size=1)}

    def step(a, b, h, m, rate):
        h = torch.tanh(a) * torch.sigmoid(b - m)
        m = m + rate * (h.mean(-1, keepdim=True) - m)
        return h - m, m


class Spread(rnnext.Recurrent):
    """Matrices to and from one value a row, which is a state and the operand of a product."""

    gates = ("a",)
    states = {"h": HIDDEN, "m": 1}
    matrices = {"read": (1, HIDDEN), "spread": (HIDDEN, 1)}

    def step(a, h, m, read, spread):
        h = torch.tanh(a + linear(m, spread))
        return h, torch.tanh(linear(h, read)) - 0.5 * m


class OneUnit(rnnext.Recurrent):
    """An output of one value a row."""

    gates = ("a", "b")
    states = {"h": 1, "c": HIDDEN}

    def step(a, b, h, c):
        c = torch.sigmoid(b) * c + torch.tanh(a)
        return torch.tanh(c.sum(-1, keepdim=True)) - 0.1 * h, c


class Tied(rnnext.Recurrent):
    """One matrix in three products, two of them one after the other."""

    gates = ("a",)
    states = ("h", "c")
    matrices = {"u": (HIDDEN, HIDDEN)}

    def step(a, h, c, u):
        first = torch.tanh(linear(c, u) + a)
        return torch.tanh(linear(first * h, u)), 0.5 * c + torch.sin(linear(first, u))


class FullPeephole(rnnext.Recurrent):
    """Graves and Schmidhuber 2005: gates see all of c, by matrices of their own."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    matrices = {"p_i": (HIDDEN, HIDDEN), "p_f": (HIDDEN, HIDDEN), "p_o": (HIDDEN, HIDDEN)}

    def step(i, f, g, o, c, p_i, p_f, p_o):
        i = torch.sigmoid(i + c @ p_i.mT) * torch.tanh(g)
        c = i + torch.sigmoid(f + torch.matmul(c, p_f.t())) * c
        return torch.sigmoid(o + linear(c, p_o)) * torch.tanh(c), c


class Everything(rnnext.Recurrent):
    """All kinds of gates, sizes, params, matrices and noise at once."""

    gates = ("f",)
    apart_gates = ("n", "k")
    input_gates = ("u",)
    states = {"h": "out_size", "c": HIDDEN, "w": "key_size", "s": 1}
    params = {"p": 0.5, "q": Param(None, size="out_size"), "t": Param(0.2, size="key_size")}
    matrices = {
        "down": ("key_size", HIDDEN),
        "up": (HIDDEN, "key_size"),
        "out": ("out_size", HIDDEN),
        "back": (HIDDEN, "out_size"),
    }
    sizes = ("out_size", "key_size")
    constants = {"rate": 0.25}
    noise = {
        "drop": rnnext.Dropout(0.2, size="key_size"),
        "shake": rnnext.Normal(0, "rate", size="out_size", per="sequence"),
    }

    def step(
        f, n_x, n_h, k_x, k_h, u, h, c, w, s, p, q, t, down, up, out, back, drop, shake, rate,
        key_size,
    ):  # fmt: skip
        f = torch.sigmoid(f + p * c)
        n = torch.tanh(n_x + f * n_h)
        key = torch.tanh(linear(k_x * torch.sigmoid(k_h), down)) * drop
        w = w + t * (key - w)
        s = (1 - rate) * s + (w * key).sum(-1, keepdim=True) / key_size**0.5
        c = f * c + (1 - f) * n + linear(w, up) * torch.sin(u) + linear(h, back)
        return torch.tanh(linear(c * torch.sigmoid(s), out) + q * shake) + 0.1 * h, c, w, s


class Smooth(rnnext.Recurrent):
    """Elementwise functions that can be differentiated everywhere."""

    gates = ("a", "b", "c", "d")

    def step(a, b, c, d, h):
        x = F.gelu(a) + F.softplus(b) + torch.erf(c) + torch.logaddexp(a, b)
        y = F.silu(d) + F.gelu(b, approximate="tanh") + F.mish(c) + torch.expm1(-d.abs().square())
        z = torch.log1p(x * x) + torch.sqrt(1 + y * y) + torch.rsqrt(1 + a.square())
        z = (
            z
            + torch.sin(c) * torch.cos(d)
            + torch.sigmoid(x - y).pow(1.5)
            + torch.tan(torch.sigmoid(b))
        )
        z = z + torch.log(2 + d.tanh()) / (1 + torch.exp(-c)) + 2 ** torch.tanh(b) + (c + h) ** 3
        return torch.tanh(0.1 * z - 0.5 * h) + torch.reciprocal(2 + torch.tanh(a))


class Piecewise(rnnext.Recurrent):
    """Elementwise functions with corners and jumps."""

    gates = ("a", "b", "c", "d")

    def step(a, b, c, d, h):
        x = F.elu(a) + F.leaky_relu(b, 0.2) + F.hardtanh(c) + F.relu6(d) + F.selu(a - b)
        y = (
            torch.clamp(a, -0.5, 0.25)
            + b.clamp(min=0.1)
            + torch.maximum(c, d)
            - torch.minimum(a, c)
        )
        z = torch.where((a > b) & (c < d) | (a.abs() <= 0.1), x, y) + torch.sign(d) * h.abs()
        z = z + torch.floor(2 * a) - 0.5 * torch.round(b) + torch.ceil(c) + torch.trunc(3 * d)
        z = (
            z
            + torch.where(~(a == b), F.threshold(c, 0.1, -1), 0.0)
            + F.hardswish(d)
            + F.softsign(a)
        )
        return torch.tanh(0.2 * z.masked_fill(z > 4, 2.0)) + 0.5 * h * (c != 0)


class EightStates(rnnext.Recurrent):
    """A delay line of seven states."""

    gates = ("a", "b")
    states = ("h", "s1", "s2", "s3", "s4", "s5", "s6", "s7")

    def step(a, b, h, s1, s2, s3, s4, s5, s6, s7):
        new = torch.tanh(a + 0.5 * s7) + torch.sigmoid(b) * s3
        return new, h, s1, torch.sin(s2 - s1 * s2), s3, s4 + 0.1 * new, s5, s6


class Norms(rnnext.Recurrent):
    """Statistics over the units, one made of the other, of states of two widths."""

    gates = ("a",)
    states = {"h": "out_size", "c": HIDDEN}
    sizes = ("out_size",)
    matrices = {"out": ("out_size", HIDDEN)}

    def step(a, h, c, out, out_size):
        c = torch.tanh(c + a - a.mean(-1, keepdim=True))
        c = c / (0.5 + c.norm(dim=-1, keepdim=True) + c.std(-1, keepdim=True, correction=0))
        new = torch.exp(torch.tanh(linear(c, out)))
        return F.rms_norm(new + h, (out_size,), eps=1e-2) + new / new.sum(-1, keepdim=True), c


ZOO = {
    cell.__name__: cell
    for cell in vars().copy().values()
    if isinstance(cell, type) and issubclass(cell, rnnext.Recurrent)
}
