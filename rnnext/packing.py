"""Padded sequences made packed: by their lengths, the op `rnnext::packing`; cut where they begin
anew, the op `rnnext::cutting`.

No output has a shape that depends on the values given, so that a traced graph holds for all; but
one of `cutting`, whose size is the number of pieces, which a graph has as a number of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def cutting(
    reset: Tensor, lengths: Tensor | None, n: int, steps: int, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The packing of a padded batch whose sequences are cut before the steps that begin anew.

    The pieces are independent of each other: a batch of more and shorter sequences.

    Args:
        reset: bool [T, N], or [N, T] if batch_first: whether sequence n begins anew at step t. What
            it says of step 0 and of padding makes no difference here.
        lengths: as for `packing`; None: all are of T steps.
        n: N.
        steps: T.
        batch_first: whether the padded rows lie as [N, T] instead of [T, N].

    Returns:
        batch_sizes [T], how many pieces have each step of theirs; rows [T * N] and their inverse,
        as of `packing`; first [N] and last [N], the places of each sequence's first and last piece
        among all pieces, longest first; and of [pieces] the sequence that each is of. All int64 on
        the CPU.

    Raises:
        ValueError: reset of another shape; lengths as for `packing`.
        TypeError: reset that is not bool.
    """
    _check_reset(reset, n, steps, batch_first)
    begins = reset.to("cpu", copy=True)
    begins = begins if batch_first else begins.t().contiguous()  # [N, T], as is all that follows
    begins[:, 0] = True
    t = torch.arange(steps, device="cpu")
    used = torch.ones_like(begins)
    if lengths is not None:
        used = t < _checked(lengths, n, steps).unsqueeze(1)
        begins &= used
    piece = begins.flatten().cumsum(0).view(n, steps) - 1
    step = t - torch.where(begins, t, 0).cummax(1).values  # within the piece
    ends, order = piece[used].bincount().sort(descending=True, stable=True)
    place = _inverse(order)
    batch_sizes = len(ends) - ends.bincount(minlength=steps + 1).cumsum(0)[:steps]
    before = batch_sizes.cumsum(0) - batch_sizes
    back = torch.empty_like(piece)
    back[used] = before[step[used]] + place[piece[used]]
    back[~used] = torch.arange(int(used.sum()), n * steps, device="cpu")
    back = (back if batch_first else back.t()).flatten()
    of = begins.nonzero()[:, 0][order]
    return batch_sizes, _inverse(back), back, place[piece[:, 0]], place[piece[:, -1]], of


@dataclass(frozen=True)
class Sorted:
    """States of sequences, and of the same sorted by length: the order and its inverse, [N]; None:
    as they are.
    """

    of: Tensor | None
    inverse: Tensor | None

    def initial(self, states: Tensor) -> Tensor:
        """[L*D, N, width], as the caller has them -> sorted."""
        return states if self.of is None else states.index_select(1, self.of)

    def final(self, states: Tensor) -> Tensor:
        """Sorted -> as the caller has them."""
        return states if self.inverse is None else states.index_select(1, self.inverse)


@dataclass(frozen=True)
class Cut:
    """Where the states of sequences that were cut begin and end among those of their pieces.

    Attributes:
        first, last: [N], as `cutting` gives them; the reverse direction goes from last to first.
        of: [pieces].
        fresh: bool [N], which sequences begin anew at step 0 themselves.
        bidirectional: whether states are of two directions.
    """

    first: Tensor
    last: Tensor
    of: Tensor
    fresh: Tensor
    bidirectional: bool

    def initial(self, states: Tensor) -> Tensor:
        """Of the sequences [L*D, N, width] -> of the pieces [L*D, pieces, width], zero but where
        they are the first that a scan comes to.
        """
        forward, *reverse = self._directions(states)
        parts = [torch.where(self.fresh.unsqueeze(1), 0, forward), *reverse]
        zeros = states.new_zeros(forward.size(0), self.of.size(0), states.size(2))
        places = (self.first, self.last)
        moved = [zeros.index_copy(1, k, part) for k, part in zip(places, parts, strict=False)]
        return torch.stack(moved, 1).flatten(0, 1)

    def final(self, states: Tensor) -> Tensor:
        """Of the pieces [L*D, pieces, width] -> of the sequences [L*D, N, width]: of the last piece
        that a scan comes to.
        """
        places = (self.last, self.first)
        parts = zip(places, self._directions(states), strict=False)
        return torch.stack([part.index_select(1, k) for k, part in parts], 1).flatten(0, 1)

    def _directions(self, states: Tensor) -> Sequence[Tensor]:
        return states.unflatten(0, (-1, 2 if self.bidirectional else 1)).unbind(1)


def as_reset(reset: object, batched: bool) -> Tensor:
    """A tensor, as `cutting` checks it: of unbatched input [T] -> [T, 1].

    Raises:
        TypeError: it is no tensor.
        ValueError: it is not [T].
    """
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset must be a bool tensor, but got {type(reset).__name__}")
    if batched:
        return reset
    if reset.dim() != 1:
        raise ValueError(f"reset must be [T], as unbatched input, but got {list(reset.shape)}")
    return reset.unsqueeze(1)


def _check_reset(reset: Tensor, n: int, steps: int, batch_first: bool) -> None:
    expected = [n, steps] if batch_first else [steps, n]
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be bool, but got {reset.dtype}: give for example reset != 0")
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if list(reset.shape) != expected:
        form = "[N, T], as batch_first" if batch_first else "[T, N]"
        raise ValueError(f"reset must be {form}, {expected} here, but got {list(reset.shape)}")


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
torch.library.impl("rnnext::cutting", "CompositeExplicitAutograd", cutting)


@torch.library.register_fake("rnnext::packing")
def _packing_fake(lengths, n, steps, batch_first):  # type: ignore[no-untyped-def]
    if not isinstance(lengths, torch._subclasses.FakeTensor):
        raise ValueError("lengths are on meta, where they have no values: give them on the CPU")
    sizes = (steps, n, n, steps * n, steps * n)
    return tuple(torch.empty(size, dtype=torch.int64, device="cpu") for size in sizes)


@torch.library.register_fake("rnnext::cutting")
def _cutting_fake(reset, lengths, n, steps, batch_first):  # type: ignore[no-untyped-def]
    if not isinstance(reset, torch._subclasses.FakeTensor):
        raise ValueError("reset is on meta, where it has no values: give it on the CPU")
    _check_reset(reset, n, steps, batch_first)
    pieces = torch.library.get_ctx().new_dynamic_size(min=1)
    sizes = (steps, steps * n, steps * n, n, n, pieces)
    return tuple(torch.empty(size, dtype=torch.int64, device="cpu") for size in sizes)
