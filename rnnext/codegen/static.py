"""Questions of a step that have the same answer for all sizes and dtypes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_EQUAL = (operator.eq, operator.ne, "__eq__", "__ne__")


def answer(node: fx.Node, example: Callable[[fx.Node], list[Any]]) -> bool | str:
    """Whether something of a recorded step is true.

    Args:
        node: of which Python asks for the truth.
        example: what a node is worth for small tensors, of float32 and of float64.

    Returns:
        The answer; or why there is none ("" for data).
    """
    values = example(node)
    if isinstance(values[0], Tensor):
        return ""
    if _asks_for_sizes(node, example):
        return (
            "for a size, but is recorded once for all sizes: what is fixed is declared in "
            "`constants`, and torch.where chooses between values"
        )
    if len({bool(value) for value in values}) == 2:
        return (
            "for a dtype, but is recorded once for float32 and float64: write what is right for "
            "both; a tensor of its own takes z.dtype as it is, as in torch.zeros(1, dtype=z.dtype)"
        )
    return bool(values[0])


def _asks_for_sizes(node: fx.Node, example: Callable[[fx.Node], list[Any]]) -> bool:
    """Whether the truth of a node depends on sizes."""
    value = example(node)[0]
    if isinstance(value, Tensor):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return True
    if isinstance(value, torch.Size):
        return True
    if node.target in _EQUAL and len(node.all_input_nodes) == 2:
        shapes = [example(arg)[0] for arg in node.all_input_nodes]
        if all(isinstance(shape, torch.Size) for shape in shapes):
            # Sizes of different names may be the same.
            return len(shapes[0]) == len(shapes[1]) and shapes[0] != shapes[1]
    return any(_asks_for_sizes(arg, example) for arg in node.all_input_nodes)
