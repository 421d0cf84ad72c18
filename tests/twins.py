"""Our layers and cells beside torch.nn's, with the same weights; written ones too."""

from typing import Any

import pytest
import torch
import written_cells
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnext

T, N, C, H = 5, 4, 3, 6

LAYERS: dict[str, tuple[Any, Any]] = {
    "LSTM": (rnnext.LSTM, nn.LSTM),
    "GRU": (rnnext.GRU, nn.GRU),
    "RNN": (rnnext.RNN, nn.RNN),
    "written LSTM": (written_cells.LSTM, nn.LSTM),
    "written GRU": (written_cells.GRU, nn.GRU),
}
CELLS: dict[str, tuple[Any, Any]] = {
    "LSTMCell": (rnnext.LSTMCell, nn.LSTMCell),
    "GRUCell": (rnnext.GRUCell, nn.GRUCell),
    "RNNCell": (rnnext.RNNCell, nn.RNNCell),
}

every_layer = pytest.mark.parametrize("name", LAYERS)
every_module = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


def twins(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Our module of that name and torch.nn's, in float64, by default from C to H features."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64, **options}
    ours, theirs = (kind(*(args or (C, H)), **options) for kind in {**LAYERS, **CELLS}[name])
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def input_of(name: str) -> Tensor:
    return torch.randn((N, C) if name in CELLS else (T, N, C), dtype=torch.float64)


def states_of(name: str) -> Any:
    """Initial states; of a layer for one direction."""
    shape = (N, H) if name in CELLS else (1, N, H)
    h, c = torch.randn(2, *shape, dtype=torch.float64)
    return (h, c) if "LSTM" in name else h


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, in order: outputs, then final states."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in tensors(part)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Of every parameter; where one has none, so has the other."""
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            close(a.grad, b.grad)
