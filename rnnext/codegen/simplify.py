"""Makes the nodes of a program: each value once, constants folded, identities gone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rnnext.codegen.ir import ELEMENTWISE_FUNCTIONS, Node, Width, is_uniform

_BOOLEAN = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not"})
_COMMUTATIVE = frozenset({"add", "mul", "minimum", "maximum", "eq", "ne", "and", "or", "xor"})


class Builder:
    """Makes nodes, and gives the one that there is where it would make the same again.

    Results stay within rounding of what torch computes step by step; NaN and infinities in the
    forward stay where they are.
    """

    def __init__(self) -> None:
        self.source = ""  # of the nodes made next
        self.backward = False  # a product with a literal zero then is zero: nothing flows there
        self.uniform: set[Node] = set()  # the same in all rows
        self._nodes: dict[tuple[object, ...], Node] = {}

    def leaf(self, op: str, index: int, width: Width = 1) -> Node:
        """A gate, state, size, ..."""
        return self._node(op, (), index=index, width=width)

    def constant(self, value: float) -> Node:
        """A number, the same for all rows and units; of a bool, a boolean."""
        boolean = isinstance(value, bool)
        return self._node("constant", (), value=float(value), width=1, boolean=boolean)

    def product(self, args: tuple[Node, ...], index: int, width: Width) -> Node:
        """The result of product number ``index``."""
        return self._node("product", args, index=index, width=width)

    def detach(self, node: Node) -> Node:
        """The same value, through which no gradient flows (until the derivatives are made)."""
        return self._node("detach", (node,), width=node.width)

    def number(self, node: Node) -> Node:
        """A boolean as 1 or 0; numbers as they are."""
        return self("where", node, self.constant(1.0), self.constant(0.0)) if node.boolean else node

    def boolean(self, node: Node) -> Node:
        """Whether a number is not 0; booleans as they are."""
        return node if node.boolean else self("ne", node, self.constant(0.0))

    def sum(self, node: Node, units: Node) -> Node:
        """Over the ``units`` of a row."""
        if node.width == 1:
            return self("mul", node, units)
        return self._node("sum", (node,), width=1)

    def batch_sum(self, node: Node, rows: Node) -> Node:
        """Over the ``rows`` of the batch."""
        if node in self.uniform:
            return self("mul", node, rows)
        return self._node("batch_sum", (node,), width=node.width)

    def __call__(self, op: str, *args: Node) -> Node:
        """An elementwise operation."""
        if all(arg.op == "constant" for arg in args):
            return self._fold(op, args)
        rule = _RULES.get(op)
        simpler = rule(self, *args) if rule is not None else None
        if simpler is not None:
            return simpler
        widths = {arg.width for arg in args} - {1}
        assert len(widths) <= 1, f"{op} of widths {widths}"
        return self._node(op, args, width=widths.pop() if widths else 1, boolean=op in _BOOLEAN)

    def _fold(self, op: str, args: tuple[Node, ...]) -> Node:
        kinds = [torch.bool if arg.boolean else torch.float64 for arg in args]
        tensors = [torch.tensor(a.value, dtype=kind) for a, kind in zip(args, kinds, strict=True)]
        return self.constant(ELEMENTWISE_FUNCTIONS[op](*tensors).item())

    def _node(
        self,
        op: str,
        args: tuple[Node, ...],
        index: int = 0,
        value: float = 0.0,
        width: Width = "hidden_size",
        boolean: bool = False,
    ) -> Node:
        order = tuple(sorted(args, key=id)) if op in _COMMUTATIVE else args
        key = (op, order, index, repr(value), boolean)
        if key not in self._nodes:
            made = Node(op, args, index, value, width, boolean, self.source)
            self._nodes[key] = made
            if is_uniform(made, self.uniform):
                self.uniform.add(made)
        return self._nodes[key]


def _is(node: Node, value: float) -> bool:
    return node.op == "constant" and not node.boolean and node.value == value


def _add(make: Builder, a: Node, b: Node) -> Node | None:
    if _is(a, 0.0):
        return b
    if _is(b, 0.0):
        return a
    if b.op == "neg":
        return make("sub", a, b.args[0])
    if a.op == "neg":
        return make("sub", b, a.args[0])
    return None


def _sub(make: Builder, a: Node, b: Node) -> Node | None:
    if _is(b, 0.0):
        return a
    if _is(a, 0.0):
        return make("neg", b)
    return make("add", a, b.args[0]) if b.op == "neg" else None


def _mul(make: Builder, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if _is(one, 1.0):
            return other
        if _is(one, -1.0):
            return make("neg", other)
        if make.backward and _is(one, 0.0):
            return one
    return None


def _div(make: Builder, a: Node, b: Node) -> Node | None:
    if make.backward and _is(a, 0.0):
        return a
    mantissa, exponent = math.frexp(b.value)
    if b.op == "constant" and abs(mantissa) == 0.5 and abs(exponent) < 100:
        return make("mul", a, make.constant(1 / b.value))
    return None


def _neg(make: Builder, a: Node) -> Node | None:
    if a.op == "neg":
        return a.args[0]
    return make("sub", a.args[1], a.args[0]) if a.op == "sub" and make.backward else None


def _pow(make: Builder, a: Node, b: Node) -> Node | None:
    if b.op != "constant":
        return None
    if b.value < 0 and -b.value in (1.0, 2.0, 3.0, 4.0):
        return make("div", make.constant(1.0), make("pow", a, make.constant(-b.value)))
    match b.value:
        case 0.0:
            return make.constant(1.0)
        case 0.5:
            return make("sqrt", a)
        case -0.5:
            return make("rsqrt", a)
        case 1.0:
            return a
        case 2.0:
            return make("mul", a, a)
        case 3.0:
            return make("mul", make("mul", a, a), a)
        case 4.0:
            return make("pow", make("mul", a, a), make.constant(2.0))
    return None


def _where(make: Builder, chosen: Node, a: Node, b: Node) -> Node | None:
    if chosen.op == "constant":
        return a if chosen.value else b
    if a is b:
        return a
    if chosen.op == "not":
        return make("where", chosen.args[0], b, a)
    if a.op == "where" and a.args[0] is chosen:
        return make("where", chosen, a.args[1], b)
    if b.op == "where" and b.args[0] is chosen:
        return make("where", chosen, a, b.args[2])
    return None


def _compare_bit(make: Builder, a: Node, b: Node, same: bool) -> Node | None:
    """``where(c, 1, 0) != 0`` is c."""
    for one, other in ((a, b), (b, a)):
        is_bit = one.op == "where" and _is(one.args[1], 1.0) and _is(one.args[2], 0.0)
        if is_bit and (_is(other, 0.0) or _is(other, 1.0)):
            chosen = one.args[0]
            return chosen if same == _is(other, 1.0) else make("not", chosen)
    return None


def _logic(make: Builder, op: str, a: Node, b: Node) -> Node | None:
    if a is b:
        return make.constant(False) if op == "xor" else a
    for one, other in ((a, b), (b, a)):
        if one.op == "constant":
            if op == "xor":
                return make("not", other) if one.value else other
            return other if bool(one.value) == (op == "and") else one
    return None


_RULES: dict[str, Callable[..., Node | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "pow": _pow,
    "where": _where,
    "eq": lambda make, a, b: _compare_bit(make, a, b, True),
    "ne": lambda make, a, b: _compare_bit(make, a, b, False),
    "and": lambda make, a, b: _logic(make, "and", a, b),
    "or": lambda make, a, b: _logic(make, "or", a, b),
    "xor": lambda make, a, b: _logic(make, "xor", a, b),
    "not": lambda make, a: a.args[0] if a.op == "not" else None,
}
