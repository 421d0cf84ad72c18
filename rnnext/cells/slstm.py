"""The LSTM with exponential gates."""
# mypy: allow-untyped-defs
# ruff: noqa: RUF012

import torch
from torch.nn.functional import logsigmoid

from rnnext.cells.options import ForgetBias

__all__ = ["SLSTM"]


class SLSTM(ForgetBias):
    """The sLSTM of xLSTM: an exponential input gate, so that a later input can overrule all before.

        i = W_ii x + b_ii + W_hi h + b_hi        f, z, o: likewise
        log f = log(sigmoid(f)), or f itself
        m' = max(log f + m, i)
        c' = exp(log f + m - m') c + exp(i - m') tanh(z)
        n' = exp(log f + m - m') n + exp(i - m')
        h' = sigmoid(o) c' / n'

    n counts what has been written; m, the stabiliser, keeps the exponentials in range and cancels
    in h'. Where n is 0, which is so before the first step, m' = i. With heads=K the recurrent
    matrix is block-diagonal, and the units of a head see each other alone. In an xLSTM block a norm
    of each head follows: `torch.nn.GroupNorm(K, H)` of y.

    Beck et al. 2024 (arXiv:2405.04517).

    Args:
        forget_gate_function: "sigmoid" or "exp".
        forget_bias: added to the initial bias of f.

    States:
        h, c, n, m: each [L*D, N, H].

    Example:
        >>> y, (h_n, c_n, n_n, m_n) = SLSTM(10, 20, heads=4)(torch.randn(5, 3, 10))
    """

    gates = ("i", "f", "z", "o")
    states = ("h", "c", "n", "m")
    constants = {"forget_gate_function": "sigmoid", "forget_bias": 0.0}

    @staticmethod
    def step(i, f, z, o, c, n, m, forget_gate_function):
        if forget_gate_function not in ("sigmoid", "exp"):
            raise ValueError(
                f"got forget_gate_function={forget_gate_function!r}, expected 'sigmoid' or 'exp'"
            )
        kept = m + (logsigmoid(f) if forget_gate_function == "sigmoid" else f)
        m = torch.where(n == 0, i, torch.maximum(kept, i))
        # Where n is 0, kept may exceed m, and infinity times 0 is no number.
        i, f = torch.exp(i - m), torch.exp((kept - m).clamp(max=0))
        c, n = f * c + i * torch.tanh(z), f * n + i
        return torch.sigmoid(o) * c / n, c, n, m
