"""The intermediate representation: what a step and its backward compute for the rows of a batch.

A :class:`Program` is one graph of :class:`Node` s, all of them values (N, width). The forward's
nodes and the backward's are in one graph: a backward node refers to forward nodes freely.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rnnext.cell import Declaration

Width = str | int  # "hidden_size", the name of a size, or 1: one value a row

LEAVES = frozenset(
    {
        *("gate", "gate_x", "gate_h", "state", "param", "noise", "size", "constant", "batch"),
        *("dnext", "doperand"),
    }
)


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the graph.

    Leaves of the forward: ``gate`` (a summed gate), ``gate_x`` and ``gate_h`` (both parts of an
    apart gate, or the one of an input gate), ``state``, ``param``, ``noise``, ``size``,
    ``constant``, ``batch`` (the number of rows); of the backward: ``dnext`` and ``doperand``.
    ``product`` has its operand as argument (in the second stream: the operand and its tangent),
    ``sum`` adds up its argument over the units of a row, ``batch_sum`` over the rows, and
    ``back_batch_sum`` where it depends on a gradient which comes in. ``detach`` is its argument,
    where a product has a state for operand to which no gradient flows back. All others are
    elementwise and named as in torch; a width of 1 broadcasts.
    """

    op: str
    args: tuple[Node, ...] = ()
    index: int = 0  # which gate, state, param, noise, size, product or sum over the batch
    value: float = 0.0  # of a constant
    width: Width = "hidden_size"  # of constants and sizes: 1
    boolean: bool = False
    source: str = ""  # "my_cells.py:12: z = torch.sigmoid(z)", "" where there is none


@dataclass
class ProductUse:
    """A product of a row with a declared matrix ``[to, source_width]``."""

    matrix: int
    to: Width
    source_width: Width
    operands: tuple[Node, ...]  # one for each stream


@dataclass
class Program:
    """A step and its backward.

    With two streams (the jvp cell) an index of a gate, state, param or product counts the first
    stream's, then their tangents. Each gradient is complete: a constant 0 where nothing flows.
    Any value may be of width 1 where a wider one is expected: it is the same for all units.

    Sums over the batch are numbered in the order in which the step makes them, the first stream's
    before their tangents'; those of the backward by themselves.
    """

    declaration: Declaration
    streams: int
    next: list[Node]
    products: list[ProductUse]  # of one stream
    dstate: list[Node]  # without what comes through products whose operand is the state itself
    da: dict[int, Node]  # of summed gates
    dx: dict[int, Node]  # of the input's part of apart and input gates
    dr: dict[int, Node]  # of the recurrent part of apart gates
    dparam: list[Node]  # one row's share
    dproduct: list[Node] = field(default_factory=list)

    def results(self) -> list[Node]:
        """All that the program computes, operands of products included."""
        operands = [operand for use in self.products for operand in use.operands]
        gradients = [*self.dstate, *self.da.values(), *self.dx.values(), *self.dr.values()]
        return [*self.next, *operands, *gradients, *self.dparam, *self.dproduct]

    @property
    def batch_sums(self) -> list[Node]:
        """The forward's sums over the batch, by number."""
        return self._all("batch_sum")

    @property
    def back_batch_sums(self) -> list[Node]:
        """The backward's, by number."""
        return self._all("back_batch_sum")

    def _all(self, op: str) -> list[Node]:
        found = (node for node in walk(self.results()) if node.op == op)
        return sorted(found, key=lambda node: node.index)

    @property
    def has_batch_sums(self) -> bool:
        """Whether rows depend on each other."""
        return bool(self.batch_sums)

    def uniform(self) -> frozenset[Node]:
        """What stages compute once for all rows; nothing where rows do not depend on each other."""
        found: set[Node] = set()
        for node in walk(self.results() if self.has_batch_sums else []):
            if is_uniform(node, found):
                found.add(node)
        return frozenset(found)


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Every node that these need, and these, once each, arguments first."""
    done: set[Node] = set()
    stack = list(nodes)[::-1]
    while stack:
        node = stack[-1]
        waiting = [arg for arg in node.args if arg not in done]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        if node not in done:
            done.add(node)
            yield node


def with_gradient(roots: Iterable[Node]) -> dict[Node, None]:
    """The nodes for these that depend on a gradient which comes in, in the order of `walk`."""
    found: dict[Node, None] = {}
    for node in walk(roots):
        if node.op in ("dnext", "doperand") or any(arg in found for arg in node.args):
            found[node] = None
    return found


BATCH_SUMS = frozenset({"batch_sum", "back_batch_sum"})
_UNIFORM = BATCH_SUMS | {"param", "size", "constant", "batch"}


def is_uniform(node: Node, uniform: Container[Node]) -> bool:
    """Whether a node is the same in all rows, where of its arguments the uniform ones are."""
    if node.op not in ELEMENTWISE and node.op != "detach":
        return node.op in _UNIFORM
    return all(arg in uniform for arg in node.args)


_SAME_NAME = (
    "add sub mul div neg abs sqrt rsqrt exp expm1 log log1p sin cos tanh sigmoid erf pow minimum "
    "maximum relu floor ceil trunc round sign lt le gt ge eq ne where"
)
ELEMENTWISE_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in _SAME_NAME.split()},
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "not": torch.logical_not,
}
ELEMENTWISE = frozenset(ELEMENTWISE_FUNCTIONS)


def evaluate(
    roots: Iterable[Node],
    leaves: Mapping[tuple[str, int], Tensor],
    compute: Callable[[Node, list[Tensor]], Tensor] | None = None,
    values: dict[Node, Tensor] | None = None,
    after: Callable[[Node], None] = lambda node: None,
) -> dict[Node, Tensor]:
    """What nodes are worth, in plain PyTorch.

    Args:
        roots: nodes that are wanted.
        leaves: by op and index, products and sums over the batch among them where these are given;
            each broadcastable to (N, width), sizes and the number of rows as 0-dim tensors.
        compute: of a product or a ``doperand`` that is not among the leaves, and its arguments.
        values: what is known already; the values are added.
        after: called with each node that has been made.

    Returns:
        The value of every node that was needed.
    """
    values = {} if values is None else values
    for node in walk(roots):
        if node in values:
            continue
        args = [values[arg] for arg in node.args]
        if (node.op, node.index) in leaves and node.op != "constant":
            values[node] = leaves[node.op, node.index]
        elif node.op == "constant":
            kind = torch.bool if node.boolean else torch.float64  # 0-dim: leaves others' dtype
            values[node] = torch.full((), node.value, dtype=kind, device="cpu")
        elif node.op == "sum":
            values[node] = args[0].sum(-1, keepdim=True)
        elif node.op in BATCH_SUMS:
            values[node] = args[0].sum(0, keepdim=True)
        elif node.op == "detach":
            values[node] = args[0].detach()
        elif node.op in ELEMENTWISE:
            values[node] = ELEMENTWISE_FUNCTIONS[node.op](*args)
        else:
            assert compute is not None, f"no value of {node.op} {node.index}"
            values[node] = compute(node, args)
        after(node)
    return values
