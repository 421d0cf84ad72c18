"""The intermediate representation: what a step and its backward compute for one row.

A :class:`Program` is one graph of :class:`Node` s, all of them values (N, width). The forward's
nodes and the backward's are in one graph: a backward node refers to forward nodes freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rnnext.cell import Declaration

Width = str | int  # "hidden_size", the name of a size, or 1: one value a row

LEAVES = frozenset(
    {"gate", "gate_x", "gate_h", "state", "param", "noise", "size", "constant", "dnext", "doperand"}
)


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the graph.

    Leaves of the forward: ``gate`` (a summed gate), ``gate_x`` and ``gate_h`` (both parts of an
    apart gate, or the one of an input gate), ``state``, ``param``, ``noise``, ``size``,
    ``constant``; of the backward: ``dnext`` and ``doperand``. ``product`` has its operand as
    argument (in the second stream: the operand and its tangent), ``sum`` adds up its argument
    over the units of a row. ``detach`` is its argument, where a product has a state for operand to
    which no gradient flows back. All others are elementwise and named as in torch; a width of 1
    broadcasts.
    """

    op: str
    args: tuple[Node, ...] = ()
    index: int = 0  # which gate, state, param, noise, size or product
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
        leaves: by op and index, products among them where these are given; each broadcastable to
            (N, width), sizes as 0-dim tensors.
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
        elif node.op == "detach":
            values[node] = args[0].detach()
        elif node.op in ELEMENTWISE:
            values[node] = ELEMENTWISE_FUNCTIONS[node.op](*args)
        else:
            assert compute is not None, f"no value of {node.op} {node.index}"
            values[node] = compute(node, args)
        after(node)
    return values
