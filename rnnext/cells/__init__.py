"""Published recurrent layers besides torch.nn's, each a short `rnnext.Recurrent` subclass; but for
BatchNormLSTM, a module over the same op that keeps statistics of the batch.

`python -m rnnext.cells` lists them with their equations, docs/cells.md says when to use which.
A family's module is imported when one of its cells is first asked for: to define a cell, its step
is recorded, which takes a moment.

>>> from rnnext import cells
>>> y, (h_n, c_n) = cells.LSTM(10, 20, zoneout_h=0.05, zoneout_c=0.5)(torch.randn(35, 3, 10))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnext.cells.batch_norm import BatchNormLSTM
    from rnnext.cells.dropconnect import drop_connect
    from rnnext.cells.gru import GRU, LightGRU, MinimalGatedUnit
    from rnnext.cells.layer_norm import DreamerGRU, LayerNormBasicLSTM, LayerNormGRU, LayerNormLSTM
    from rnnext.cells.lstm import JANET, LSTM, SRU, CoupledLSTM, PeepholeLSTM
    from rnnext.cells.options import FUNCTIONS
    from rnnext.cells.simple import IRNN, RNN, IndRNN
    from rnnext.cells.slstm import SLSTM
    from rnnext.cells.variational import VariationalGRU, VariationalLSTM

CELLS = {
    "LSTM": "lstm",
    "PeepholeLSTM": "lstm",
    "CoupledLSTM": "lstm",
    "JANET": "lstm",
    "SRU": "lstm",
    "VariationalLSTM": "variational",
    "LayerNormLSTM": "layer_norm",
    "LayerNormBasicLSTM": "layer_norm",
    "BatchNormLSTM": "batch_norm",
    "SLSTM": "slstm",
    "GRU": "gru",
    "LightGRU": "gru",
    "MinimalGatedUnit": "gru",
    "VariationalGRU": "variational",
    "LayerNormGRU": "layer_norm",
    "DreamerGRU": "layer_norm",
    "RNN": "simple",
    "IRNN": "simple",
    "IndRNN": "simple",
}
"""Every cell by its name, with the module that it is in."""

_PLACES = {**CELLS, "FUNCTIONS": "options", "drop_connect": "dropconnect"}

__all__ = [
    "CELLS",
    "FUNCTIONS",
    "GRU",
    "IRNN",
    "JANET",
    "LSTM",
    "RNN",
    "SLSTM",
    "SRU",
    "BatchNormLSTM",
    "CoupledLSTM",
    "DreamerGRU",
    "IndRNN",
    "LayerNormBasicLSTM",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LightGRU",
    "MinimalGatedUnit",
    "PeepholeLSTM",
    "VariationalGRU",
    "VariationalLSTM",
    "drop_connect",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
