"""How one long text becomes batches: parallel streams, cut into windows.

A text of eleven tokens `a b c d e f g h i j k` in two streams (N = 2), cut into windows of three
steps (`--bptt 3`); time runs down, `.` is `<eos>` and `-` is padding:

              inputs  targets
              . f     a g
    window 1  a g     b h
              b h     c i
              ----------------
              c i     d j
    window 2  d j     e k
              e .     f -

Every token is a target exactly once. A stream's first input is the token before its first target,
so a seam between streams costs context but no token; before the first token of all, the model sees
`<eos>`, as if a line had just ended. Lengths of streams differ by at most one, so that the only
padding is in the last row; the loss ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .vocabulary import EOS_ID

IGNORED = -100  # cross_entropy's own default for ignore_index


class Window(NamedTuple):
    """Some steps of all streams.

    Attributes:
        inputs: int64 `[T, N]`.
        targets: int64 `[T, N]`, the token after each input; `IGNORED` where there is none.
        tokens: how many targets are not ignored.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int


def streams(tokens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Lay a text out as `n` streams that are read side by side.

    Args:
        tokens: int64 `[length]`.
        n: number of streams, from 1 to `length`.

    Returns:
        Inputs and targets, int64 `[ceil(length / n), n]` each.
    """
    if not 1 <= n <= len(tokens):
        raise ValueError(f"{len(tokens)} tokens cannot be cut into {n} streams")
    quotient, remainder = divmod(len(tokens), n)
    stream = torch.arange(n)
    starts = stream * quotient + stream.clamp(max=remainder)
    steps = torch.arange(quotient + (remainder > 0)).unsqueeze(1)
    real = steps < quotient + (stream < remainder).long()
    place = torch.where(real, starts + steps, 0)
    previous = torch.cat([tokens.new_tensor([EOS_ID]), tokens[:-1]])
    inputs = torch.where(real, previous[place], EOS_ID)
    targets = torch.where(real, tokens[place], IGNORED)
    return inputs, targets


def windows(tokens: Tensor, n: int, length: int, device: torch.device) -> Iterator[Window]:
    """The windows of a text, in reading order.

    Args:
        tokens: int64 `[length of the text]`.
        n: number of streams.
        length: steps in a window; the last window may have fewer.
        device: where the windows are wanted.
    """
    inputs, targets = streams(tokens, n)
    padding = inputs.numel() - len(tokens)
    for start in range(0, len(inputs), length):
        x, y = inputs[start : start + length], targets[start : start + length]
        last = start + length >= len(inputs)
        yield Window(x.to(device), y.to(device), y.numel() - (padding if last else 0))
