"""The elementwise functions of the cells, held to a few units in the last place."""

import pytest
import torch
from torch import Tensor

from rnnext import ops


def tanh(x: Tensor) -> Tensor:
    """The kernels' tanh: one step of a cell of one unit with weights one and zero."""
    one = torch.ones(1, 1, dtype=x.dtype)
    y, _ = ops.rnn("RNN_TANH", x.view(1, -1, 1), [], [one, torch.zeros_like(one)])
    return y.view(-1)


def sigmoid(x: Tensor) -> Tensor:
    """The kernels' sigmoid: the update gate of a GRU with state one and candidate zero."""
    w_ih = torch.tensor([[0.0], [1.0], [0.0]], dtype=x.dtype)
    h0 = torch.ones(1, x.numel(), 1, dtype=x.dtype)
    y, _ = ops.rnn("GRU", x.view(1, -1, 1), [h0], [w_ih, torch.zeros_like(w_ih)])
    return y.view(-1)


def ulps(result: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of the result's dtype."""
    value = exact.abs().to(result.dtype)
    unit = (torch.nextafter(value, torch.full_like(value, float("inf"))) - value).to(exact.dtype)
    return ((result.to(exact.dtype) - exact).abs() / unit).max().item()


def arguments(dtype: torch.dtype, limit: float) -> Tensor:
    small = torch.logspace(-30, 0, 20001, dtype=torch.float64)
    wide = torch.linspace(0, limit, 200001, dtype=torch.float64)
    x = torch.cat([small, wide]).to(dtype)
    return torch.cat([-x, x])


@pytest.mark.parametrize("function", [tanh, sigmoid])
def test_float32_errors(function) -> None:  # type: ignore[no-untyped-def]
    x = arguments(torch.float32, 80.0)
    exact = getattr(torch, function.__name__)(x.double())
    assert ulps(function(x), exact) <= 4


@pytest.mark.parametrize("function", [tanh, sigmoid])
def test_float64_errors(function) -> None:  # type: ignore[no-untyped-def]
    # torch's own functions are within one unit of the exact values.
    x = arguments(torch.float64, 700.0)
    exact = getattr(torch, function.__name__)(x)
    assert ulps(function(x), exact) <= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signed_zeros_and_limits(dtype: torch.dtype) -> None:
    x = torch.tensor([-0.0, 0.0, 1e4, -1e4, float("inf"), float("-inf")], dtype=dtype)
    assert tanh(x).tolist() == [0, 0, 1, -1, 1, -1]
    assert sigmoid(x[2:4]).tolist() == [1, 0]
    assert tanh(torch.tensor([float("nan")], dtype=dtype)).isnan().all()
