"""Samples (the items that torch.vmap maps over) as one batch: in place of each row stand those of
all samples, so that row r of the batch is of sample r % count.

That is the same for padded and packed rows, for states and for what training keeps: all are
[..., rows, columns]; and packed rows stay sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = Sequence[Any]
"""Tensors, or None for what is not there."""
Dims: TypeAlias = Sequence[int | None]
"""Of each tensor the dimension that samples lie along; None: all have the same."""


def join(tensors: Tensors, dims: Dims, count: int) -> list[Any]:
    """Of each sample [..., rows, columns] -> [..., rows * count, columns]."""

    def one(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is not None:
            return tensor.movedim(dim, -2).flatten(-3, -2)
        *lead, columns = tensor.shape
        return tensor.unsqueeze(-2).expand(*lead, count, columns).flatten(-3, -2)

    pairs = zip(tensors, dims, strict=True)
    return [None if tensor is None else one(tensor, dim) for tensor, dim in pairs]


def separate(tensors: Sequence[Tensor], count: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """[..., rows * count, columns] -> [..., rows, count, columns], and which dimension count is."""
    results = tuple(_separate(tensor, count) for tensor in tensors)
    return results, tuple(tensor.dim() - 2 for tensor in results)


def select(tensors: Tensors, k: int, count: int) -> list[Any]:
    """Of samples that were joined, sample k."""
    return [None if t is None else _separate(t, count).select(-2, k) for t in tensors]


def one_by_one(
    function: Callable[..., Sequence[Tensor]], tensors: Tensors, dims: Dims, count: int
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """What a function gives of each sample, stacked; and the dimension that count is."""
    found = []
    for k in range(count):
        pairs = zip(tensors, dims, strict=True)
        found.append(function(*(t if t is None or d is None else t.select(d, k) for t, d in pairs)))
    results = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    return results, (0,) * len(results)


def _separate(tensor: Tensor, count: int) -> Tensor:
    return tensor.unflatten(-2, (tensor.size(-2) // count, count))
