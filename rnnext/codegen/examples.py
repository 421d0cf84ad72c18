"""Small tensors on which a recorded step is tried: all sizes distinct."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rnnext.codegen.errors import call_error, first_line
from rnnext.codegen.ir import Width

if TYPE_CHECKING:
    from rnnext.cell import Declaration
    from rnnext.codegen.record import Input

_ROWS, _HIDDEN = 3, 7


class Examples:
    """A tensor of zeros for each of a step's inputs, and what its calls make of them.

    (Not meta tensors: their kernels import what takes a second.)
    """

    def __init__(
        self,
        declaration: Declaration,
        inputs: list[Input],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.sizes: dict[Width, int] = {"hidden_size": _HIDDEN, 1: 1}
        self.sizes.update(zip(declaration.sizes, _primes(), strict=False))
        sources = [source for _, source in declaration.matrices.values()]
        self.inputs: dict[str, object] = {}
        for given in inputs:
            if given.op == "size":
                self.inputs[given.name] = self.sizes[given.name]
            elif given.op == "matrix":
                self.inputs[given.name] = self.zeros(given.width, sources[given.index])
            elif given.op == "param":
                self.inputs[given.name] = self.zeros(given.width)
            else:
                self.inputs[given.name] = self.rows(given.width)
        self._known: dict[fx.Node, Any] = {}

    def zeros(self, *widths: Width) -> Tensor:
        """Zeros of these widths."""
        return torch.zeros([self.sizes[w] for w in widths], dtype=self.dtype, device="cpu")

    def rows(self, width: Width) -> Tensor:
        """Zeros (N, width)."""
        return torch.zeros(_ROWS, self.sizes[width], dtype=self.dtype, device="cpu")

    def is_rows(self, value: object, width: Width) -> bool:
        """Whether a value is a tensor (N, width)."""
        return isinstance(value, Tensor) and value.shape == (_ROWS, self.sizes[width])

    def value(self, wanted: fx.Node, declaration: Declaration) -> Any:
        """What a node of a graph is worth.

        Raises:
            CellError: it cannot be computed, or a node before it.
        """
        for node in wanted.graph.nodes:
            if node not in self._known:
                if node.op == "placeholder":
                    self._known[node] = self.inputs[str(node.target)]
                else:
                    args, kwargs = fx.map_arg((node.args, node.kwargs), self._known.__getitem__)
                    try:
                        self._known[node] = call(node, args, kwargs)
                    except Exception as error:
                        raise call_error(declaration, node, self.explain(error, args)) from error
            if node is wanted:
                break
        return self._known[wanted]

    def shape_text(self, value: object) -> str:
        """A value's shape by the names of sizes: "(N, hidden_size)"."""
        if not isinstance(value, Tensor):
            return type(value).__name__
        names = {size: str(width) for width, size in self.sizes.items()}
        shape = [names.get(size, str(size)) for size in value.shape]
        if value.shape[:1] == (_ROWS,):
            shape[0] = "N"
        return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(shape)})"

    def explain(self, error: Exception, args: tuple[object, ...]) -> str:
        """What torch says, and what to do where sizes do not fit."""
        reason = first_line(error)
        if not re.search("size|shape|dimension", reason) or not re.search(r"\d", reason):
            return reason
        others = [f", {k} {size}" for k, size in self.sizes.items() if k not in (1, "hidden_size")]
        reason += f" (steps are tried with {_ROWS} rows of {_HIDDEN} units{''.join(others)})"
        if any(isinstance(arg, Tensor) and arg.shape == (_ROWS,) for arg in args):
            reason += "; a value of shape (N,) is one value a row: keep its axis, as in "
            reason += "z.mean(-1, keepdim=True)"
        return reason


def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a recorded call."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _primes() -> Iterator[int]:
    return (p for p in range(11, 10**6) if all(p % d for d in range(2, p)))
