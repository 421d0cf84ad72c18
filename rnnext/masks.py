"""Masks that a call is given instead of drawing them: checked, and laid out for the op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnnext.noise import Noise, listed

WEIGHT = "weight_hh"
"""The name of the mask of the recurrent weights: DropConnect."""


@dataclass(frozen=True)
class Masks:
    """The masks of one call; R = L * D, for each direction of each layer.

    Attributes:
        steps: of the noise that is drawn at each step, [R, rows, width] by name; the rows are those
            of the op's input.
        sequences: of the noise that is drawn once for a sequence, [R, N, width] by name, in the
            order of the op's sequences.
        weight: of the recurrent weights, [R, ...], or None.
    """

    steps: dict[str, Tensor]
    sequences: dict[str, Tensor]
    weight: Tensor | None

    def transposed(self, n: int) -> Masks:
        """From rows as they lie in [N, T] to rows as they lie in [T, N]."""
        moved = {k: m.unflatten(1, (n, -1)).transpose(1, 2) for k, m in self.steps.items()}
        return replace(self, steps={k: m.flatten(1, 2) for k, m in moved.items()})

    @property
    def has_noise(self) -> bool:
        """Whether there is any but that of the weights."""
        return bool(self.steps or self.sequences)

    def packed(self, rows: Tensor | None, sequences: Tensor) -> Masks:
        """With these rows [all rows], unless they are as they should be; and these sequences, each
        for one of the op's.
        """
        steps = self.steps
        if rows is not None:
            steps = {name: mask.index_select(1, rows) for name, mask in steps.items()}
        return Masks(
            steps,
            {name: mask.index_select(1, sequences) for name, mask in self.sequences.items()},
            self.weight,
        )

    def noise(self, order: Iterable[str], rows: int, dtype: torch.dtype) -> Tensor:
        """All noise side by side as the op takes it, in this order of names: [R, rows, width]."""
        parts = []
        for name in order:
            if name in self.steps:
                parts.append(self.steps[name])
            else:
                mask = self.sequences[name]
                rest = mask.new_zeros(mask.size(0), rows - mask.size(1), mask.size(2))
                parts.append(torch.cat([mask, rest], 1))
        return torch.cat(parts, 2).to(dtype)


def checked(
    kind: str,
    masks: Mapping[str, Tensor],
    noise: Mapping[str, tuple[Noise, int]],
    weight_shape: Sequence[int] | None,
    runs: int,
    rows: Sequence[int],
    sequences: Sequence[int],
) -> Masks:
    """Masks as a layer is given them.

    Args:
        kind: the layer's name, for errors.
        masks: by name.
        noise: what the layer draws, by name, and the width of each.
        weight_shape: of a recurrent matrix; None where there is none.
        runs: L * D.
        rows: the leading dimensions of the input: [T, N] or [N, T], [T], packed [rows].
        sequences: [N]; of unbatched input [].

    Raises:
        ValueError: a mask that is missing, unknown or of another shape, or is to be differentiated.
        TypeError: what is no tensor.
    """
    known = [*noise, *([WEIGHT] if weight_shape is not None else [])]
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(f"masks has {name!r}, but {kind} draws {listed(known)}")
        if not isinstance(mask, Tensor):
            raise TypeError(f"masks[{name!r}] must be a Tensor, but got {type(mask).__name__}")
        if mask.requires_grad:
            raise ValueError(
                f"masks[{name!r}] requires grad, but masks have no gradient: detach it"
            )
        if name == WEIGHT:
            assert weight_shape is not None
            expected, form = [runs, *weight_shape], "[L*D, *weight_hh_l0.shape]"
        elif noise[name][0].per == "step":
            expected, form = [runs, *rows, noise[name][1]], "[L*D, as the input, width]"
        else:
            expected, form = [runs, *sequences, noise[name][1]], "[L*D, N, width]"
        if list(mask.shape) != expected:
            raise ValueError(
                f"masks[{name!r}] must be {form}, {expected} here, but got {list(mask.shape)}"
            )
    given = [name for name in noise if name in masks]
    missing = [name for name in noise if name not in masks]
    if given and missing:
        raise ValueError(f"masks has {listed(given)}, but {kind} draws {listed(missing)} too")
    flat = {name: masks[name].reshape(runs, -1, noise[name][1]) for name in given}
    per_step = {name: mask for name, mask in flat.items() if noise[name][0].per == "step"}
    others = {name: mask for name, mask in flat.items() if name not in per_step}
    return Masks(per_step, others, masks.get(WEIGHT))
