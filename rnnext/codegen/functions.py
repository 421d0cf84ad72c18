"""What takes the place of some of torch's functions in a recorded graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Stands for a tensor of one value from outside."""
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def rms_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Torch's, over the units of a row; torch's own rounds its ``eps``."""
    if eps is None:
        raise ValueError(
            "its default eps differs between float32 and float64: give it, as in eps=1e-6"
        )
    if len(normalized_shape) != 1 or normalized_shape[0] != input.shape[-1]:
        raise ValueError("it normalizes the units of a row, with normalized_shape (hidden_size,)")
    result = input * torch.rsqrt((input * input).mean(-1, keepdim=True) + eps)
    return result if weight is None else result * weight


# Of real numbers sgn is sign, but its derivative fixes the sizes.
SAME: dict[Any, Callable[..., Tensor] | str] = {
    torch.sgn: torch.sign,
    "sgn": "sign",
    torch.rms_norm: rms_norm,
    F.rms_norm: rms_norm,
}
