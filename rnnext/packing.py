"""Padded sequences and their lengths, made packed: the op `rnnext::packing`.

None of its outputs has a shape that depends on the lengths, so that a traced graph holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TypeAlias

import torch
from torch import Tensor

Lengths: TypeAlias = Tensor | Sequence[int]


def as_tensor(lengths: Lengths) -> Tensor:
    """Lengths in a tensor, which `packing` checks.

    Raises:
        TypeError: what is neither a tensor nor a list of integers.
    """
    if isinstance(lengths, Tensor):
        return lengths
    try:
        return torch.tensor([index(end) for end in lengths], dtype=torch.int64, device="cpu")
    except TypeError as e:
        raise TypeError(f"lengths must be integers, in a tensor or a list [N]: {e}") from e


def packing(
    lengths: Tensor, n: int, steps: int, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The packing of a padded batch: sequences sorted, longest first, and their rows step by step.

    Args:
        lengths: [N], integers in 1..T, in any order, on any device.
        n: N.
        steps: T.
        batch_first: whether the padded rows lie as [N, T] instead of [T, N].

    Returns:
        batch_sizes [T], how many sequences have each step; order [N], from the caller's order to
        the sorted one, and its inverse; rows [T * N], for each packed row its place in the padded
        batch, the rows of the padding last, and the inverse of this. All int64 on the CPU.

    Raises:
        ValueError: lengths that are not [N], or out of range.
        TypeError: lengths that are not integers.
    """
    ends, order = _checked(lengths, n, steps).sort(descending=True, stable=True)
    t = torch.arange(steps, device="cpu").unsqueeze(1)
    used = ends > t  # [T, N], as are the places
    places = t + steps * order if batch_first else n * t + order
    rows = torch.cat([places[used], places[~used]])
    return used.sum(1), order, _inverse(order), rows, _inverse(rows)


def _checked(lengths: Tensor, n: int, steps: int) -> Tensor:
    """Lengths as int64 on the CPU; else an error says what is wrong with them."""
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have one dimension, [N], but got {list(lengths.shape)}")
    if lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(
            f"lengths must be integers, in a tensor or a list [N], but got {lengths.dtype}"
        )
    if len(lengths) != n:
        raise ValueError(
            f"lengths must have one entry for each of {n} rows, but got {len(lengths)}"
        )
    ends = lengths.to("cpu", torch.int64)
    wrong = ((ends < 1) | (ends > steps)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"lengths must be in 1..{steps} (T), but lengths[{row}] is {int(ends[row])}"
        )
    return ends


def _inverse(permutation: Tensor) -> Tensor:
    places = torch.arange(len(permutation), device="cpu")
    return torch.empty_like(permutation).index_copy_(0, permutation, places)


torch.library.impl("rnnext::packing", "CompositeExplicitAutograd", packing)


@torch.library.register_fake("rnnext::packing")
def _packing_fake(lengths, n, steps, batch_first):  # type: ignore[no-untyped-def]
    if not isinstance(lengths, torch._subclasses.FakeTensor):
        raise ValueError("lengths are on meta, where they have no values: give them on the CPU")
    sizes = (steps, n, n, steps * n, steps * n)
    return tuple(torch.empty(size, dtype=torch.int64, device="cpu") for size in sizes)
