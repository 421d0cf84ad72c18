"""torch.compile takes the layers' and cells' Python whole: one graph, no break."""

from typing import Any

import pytest
import torch
from torch import Tensor

import rnnext


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in leaves(part)]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_compiled_whole_it_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    cell = "Cell" in name
    module = getattr(rnnext, name)(3, 2, **({} if cell else {"batch_first": True}))
    h = torch.randn((4, 2) if cell else (1, 4, 2))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = torch.randn((4, 3) if cell else (4, 2, 3))
    for args in ((x,), (x, (h, h) if name.startswith("LSTM") else h)):
        for a, b in zip(leaves(compiled(*args)), leaves(module(*args)), strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_dropout_and_unbatched_input() -> None:
    module = rnnext.GRU(3, 2, 2, dropout=0.5)
    x = torch.randn(4, 3)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = module(x)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x)[0], expected)


def test_compiled_lengths_from_a_list() -> None:
    module = rnnext.LSTM(3, 2, bidirectional=True)
    x = torch.randn(4, 3, 3)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    y, (h_n, c_n) = compiled(x, lengths=[2, 4, 1])
    for a, b in zip(leaves(module(x, lengths=[2, 4, 1])), (y, h_n, c_n), strict=True):
        torch.testing.assert_close(a, b)
