"""Sums in the backward, over the units of a row or over the batch: as few as possible, and early.

A sum is linear, so what is the same for a whole row (or in all rows) comes out of it, and sums that
are only added up become one. Thus the gradient of a norm does not wait for one total to add up the
next: of

    sum(a * scale + t * (x - mean(x)))    where t is made of other totals

sum(a) * scale is left, which can be added up together with them; the rest is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from rnnext.codegen.ir import ELEMENTWISE, Node, Width, walk, with_gradient
from rnnext.codegen.simplify import Builder

Factors: TypeAlias = tuple[tuple[Node, int], ...]
"""Values that come out of sums, with exponents, in the order in which they were first met."""

Terms: TypeAlias = dict[tuple[Factors, Node | None], float]
"""A linear combination: numbers times factors times the sum of a node (of None: no sum)."""

_LINEAR = frozenset({"sum", "batch_sum", "add", "sub", "neg", "mul", "div"})
_ROUNDING = 1e-12


class Sums:
    """Rewrites nodes that depend on gradients; those of the forward stay as they are.

    Args:
        make: the builder of the nodes.
        roots: all nodes that will be rewritten.
        size: the node of how many are added up, for a width: units, or rows.
        batch: the sums are over the batch; else they are over the units of a row.
    """

    def __init__(
        self,
        make: Builder,
        roots: Iterable[Node],
        size: Callable[[Width], Node],
        batch: bool = False,
    ) -> None:
        self.make = make
        self.size = size
        self.batch = batch
        nodes = list(walk(roots))
        self.gradients = with_gradient(nodes)
        # The forward's sums over the batch, which any stage can read, by what they add up.
        sums = (n for n in nodes if n.op == "batch_sum" and n not in self.gradients)
        self.known = {total.args[0]: total for total in sums}
        self.made: dict[Node, Node] = {}
        self.order: dict[Node, int] = {}
        # Through values of the forward as well, or up to these.
        self.terms: dict[bool, dict[Node, Terms]] = {True: {}, False: {}}

    def __call__(self, root: Node) -> Node:
        """The node that takes this one's place."""
        for node in walk([root]):
            if node not in self.made:
                self.make.source = node.source
                self.make.backward = True
                self.made[node] = self._rewritten(node)
        return self.made[root]

    def _rewritten(self, node: Node) -> Node:
        if node not in self.gradients:
            return node
        if self._same(node) and node.op in _LINEAR:
            terms = self._terms(node, through=True)
            if any(atom and atom not in self.gradients for _, atom in terms):
                terms = self._terms(node, through=False)
            return self._written(terms)
        args = [self.made[arg] for arg in node.args]
        same = all(new is old for new, old in zip(args, node.args, strict=True))
        return node if same or node.op not in ELEMENTWISE else self.make(node.op, *args)

    def _same(self, node: Node) -> bool:
        """Whether all that is added up would be the same."""
        return node in self.make.uniform if self.batch else node.width == 1

    def _terms(self, root: Node, through: bool) -> Terms:
        """The combination that a node is which comes out of sums, or that the sum of another is."""
        known = self.terms[through]
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [arg for arg in self._parts(node, through) if arg not in known]
            if waiting and node not in known:
                stack += waiting
                continue
            stack.pop()
            if node not in known:
                known[node] = self._combined(node, known, through)
        return known[root]

    def _parts(self, node: Node, through: bool) -> tuple[Node, ...]:
        """The arguments whose combinations make up a node's."""
        if node.op not in _LINEAR or node in self.known:
            return ()
        if node not in self.gradients and not through:
            return ()
        parts = node.args
        if node.op in ("mul", "div"):
            factor, value = self._split(node)
            parts = () if factor is None else (value,)
        # There are no sums over the batch of one value a row.
        narrower = self.batch and any(p.width != node.width and not self._same(p) for p in parts)
        return () if narrower else parts

    def _split(self, node: Node) -> tuple[Node | None, Node]:
        """Of a product or quotient, what comes out of the sum, and the other one."""
        a, b = node.args
        ways = [(b, a)] if node.op == "div" else [(b, a), (a, b)]
        ways = [(factor, value) for factor, value in ways if self._same(factor)]
        if not ways:
            return None, node
        return min(ways, key=lambda way: (way[0].op in _LINEAR, way[0] in self.gradients))

    def _combined(self, node: Node, known: dict[Node, Terms], through: bool) -> Terms:
        parts = self._parts(node, through)
        if not parts:
            if through or node in self.gradients or not self.batch:
                return self._single(node)
            terms = self._terms(node, through=True)
            return self._single(node) if any(atom for _, atom in terms) else terms
        if node.op in ("sum", "batch_sum"):  # what is summed stands for its sum already
            return known[parts[0]]
        if node.op in ("mul", "div"):
            factor, value = self._split(node)
            assert factor is not None
            return self._times(known[value], factor, 1 if node.op == "mul" else -1)
        total: Terms = {}
        sizes: dict[tuple[Factors, Node | None], float] = {}
        for place, part in enumerate(parts):
            sign = -1.0 if node.op == "neg" or (node.op == "sub" and place == 1) else 1.0
            terms = known[part]
            if self._same(part) and not self._same(node):  # it is added for each unit, or row
                terms = self._times(terms, self.size(node.width), 1)
            for key, number in terms.items():
                total[key] = total.get(key, 0.0) + sign * number
                sizes[key] = sizes.get(key, 0.0) + abs(number)
        return {key: value for key, value in total.items() if abs(value) > _ROUNDING * sizes[key]}

    def _single(self, node: Node) -> Terms:
        if node.op == "constant" and math.isfinite(node.value) and not node.boolean:
            return {((), None): node.value} if node.value else {}
        if self._same(node):
            return {(self._power(node, 1), None): 1.0}
        if node in self.known:
            return {(self._power(self.known[node], 1), None): 1.0}
        return {((), node): 1.0}

    def _times(self, terms: Terms, factor: Node, exponent: int) -> Terms:
        if factor.op == "constant" and not factor.boolean:
            by = factor.value**exponent if factor.value else math.nan
            if math.isfinite(by):
                return {key: value * by for key, value in terms.items()}
        power = self._power(factor, exponent)
        return {(self._joined(f, power), atom): value for (f, atom), value in terms.items()}

    def _power(self, node: Node, exponent: int) -> Factors:
        """A node as factors: products of sizes come apart, so that these cancel."""
        if node.op == "mul" and node not in self.gradients:
            a, b = node.args
            return self._joined(self._power(a, exponent), self._power(b, exponent))
        self.order.setdefault(node, len(self.order))
        return ((node, exponent),)

    def _joined(self, a: Factors, b: Factors) -> Factors:
        powers = dict(a)
        for node, exponent in b:
            powers[node] = powers.get(node, 0) + exponent
        kept = [(node, exponent) for node, exponent in powers.items() if exponent]
        return tuple(sorted(kept, key=lambda factor: self.order[factor[0]]))

    def _written(self, terms: Terms) -> Node:
        """The combination as nodes: one sum for each product of factors that hold gradients.

        Other factors are read in any stage, so terms that differ in these alone share a sum.
        """
        groups: dict[tuple[Factors, Width], dict[Factors, list[tuple[Node, float]]]] = {}
        result = self.make.constant(0.0)
        for (factors, atom), value in terms.items():
            if atom is None:
                result = self.make("add", result, self._scaled(None, factors, value))
                continue
            late = tuple(f for f in factors if f[0] in self.gradients)
            early = tuple(f for f in factors if f[0] not in self.gradients)
            group = groups.setdefault((late, atom.width), {})
            group.setdefault(early, []).append((atom, value))
        for (late, width), group in groups.items():
            inner, outside, scale = self.make.constant(0.0), late, 1.0
            alone = len(group) == 1
            for early, atoms in group.items():
                values = {value for _, value in atoms}
                if alone:
                    outside = self._joined(late, early)
                    scale = values.pop() if len(values) == 1 else 1.0
                part = self.make.constant(0.0)
                for atom, value in atoms:
                    new = self.made.get(atom, atom)
                    part = self.make("add", part, self._scaled(new, (), value / scale))
                inner = self.make("add", inner, part if alone else self._scaled(part, early, 1.0))
            add_up = self.make.batch_sum if self.batch else self.make.sum
            total = add_up(inner, self.size(width))
            result = self.make("add", result, self._scaled(total, outside, scale))
        return result

    def _scaled(self, node: Node | None, factors: Factors, value: float) -> Node:
        """A node times factors times a number."""
        above = self.make.constant(value)
        for factor, exponent in factors:
            new = self.made.get(factor, factor)
            for _ in range(exponent):
                above = self.make("mul", above, new)
            for _ in range(-exponent):
                above = self.make("div", above, new)
        return above if node is None else self.make("mul", node, above)
