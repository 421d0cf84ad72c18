"""Rules of the ops for the vmap of torch.autograd.grad(..., is_grads_batched=True), on which the
vectorized functions of torch.autograd.functional stand too. It is an older one than torch.vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnext.derivatives import Backward, Call, Rnn, RnnBackward

_DEFAULTS = (None, 0)  # of operand_dtype and checkpoint_every: torch leaves those at the end out


class _Info(NamedTuple):
    """What torch.vmap tells a rule."""

    batch_size: int


def _apply(rule: Callable[..., tuple[Any, Any]], tensors: Sequence[Any]) -> list[Tensor]:
    """Apply a rule for torch.vmap to tensors of the older one."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # One sample where there are none.
    bare = [None if t is None else torch._remove_batch_dim(t, level, 1, 0) for t in tensors]
    count = max(len(t) for t in bare if t is not None)
    dims = [0 if t is not None and len(t) == count else None for t in bare]
    given = [t[0] if d is None and t is not None else t for t, d in zip(bare, dims, strict=True)]
    found = rule(_Info(count), (None, *dims), *given)
    return [torch._add_batch_dim(t, dim, level) for t, dim in zip(*found, strict=True)]


def _rnn_train_of_batched(*arguments: Any) -> list[Tensor]:
    cell, x, h0, weights, batch_sizes, seed, *options = arguments
    call = Call(cell, len(h0), (*options, *_DEFAULTS[len(options) - 4 :]))

    def rule(info: Any, dims: tuple[Any, ...], *tensors: Any) -> tuple[Any, Any]:
        return Rnn.vmap(info, dims, call, *tensors)

    return _apply(rule, (batch_sizes, seed, x, *h0, *weights))


def _rnn_backward_of_batched(*arguments: Any) -> list[Tensor]:
    grads, y, saved, cell, x, h0, weights, batch_sizes, seed, *options = arguments
    *of_call, mask = options[:5]
    more = (*options[6:], *_DEFAULTS[max(len(options) - 6, 0) :])  # after samples
    this = Backward(Call(cell, len(h0), (*of_call, *more)), 1 + len(saved), tuple(mask))

    def rule(info: Any, dims: tuple[Any, ...], *tensors: Any) -> tuple[Any, Any]:
        return RnnBackward.vmap(info, dims, this, *tensors)

    return _apply(rule, (y, *saved, *grads, batch_sizes, seed, x, *h0, *weights))


def _rnn_jvp_of_batched(*_: Any) -> list[Tensor]:
    raise NotImplementedError(
        "rnnext: second derivatives can't be vectorized by torch.autograd: use torch.func.hessian, "
        "or leave out vectorize=True (is_grads_batched=True)"
    )


torch.library.impl("rnnext::rnn_train", "Batched", _rnn_train_of_batched)
torch.library.impl("rnnext::rnn_backward", "Batched", _rnn_backward_of_batched)
torch.library.impl("rnnext::rnn_jvp", "Batched", _rnn_jvp_of_batched)
