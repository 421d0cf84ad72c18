"""Recurrent networks for PyTorch: drop-in LSTM, GRU and RNN layers on fused kernels.

>>> import torch
>>> lstm = LSTM(10, 20, num_layers=2)  # the arguments, weights and results of torch.nn.LSTM
>>> y, (h_n, c_n) = lstm(torch.randn(35, 3, 10))
>>> model = swap(torch.nn.Sequential(torch.nn.GRU(10, 20)))  # or a model you have, in place
"""

from rnnext import _load

_load.load_library()

from rnnext import cells, ops, reference  # noqa: E402
from rnnext._load import build_info  # noqa: E402
from rnnext.cell import Bernoulli, Dropout, Normal, Param, Uniform  # noqa: E402
from rnnext.codegen.record import CellError  # noqa: E402
from rnnext.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell  # noqa: E402
from rnnext.plan import plan  # noqa: E402
from rnnext.recurrent import Recurrent  # noqa: E402
from rnnext.swap import swap, unswap  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bernoulli",
    "CellError",
    "Dropout",
    "GRUCell",
    "LSTMCell",
    "Normal",
    "Param",
    "RNNCell",
    "Recurrent",
    "Uniform",
    "build_info",
    "cells",
    "ops",
    "plan",
    "reference",
    "swap",
    "unswap",
]
