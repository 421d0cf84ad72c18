"""One function of a generated cell: its stages as C++ statements."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rnnext.codegen.ir import Node
from rnnext.codegen.names import Scope, split_source
from rnnext.codegen.schedule import Schedule, Stage, Task, needs

_LONGEST = 80  # an expression longer than this gets a name
_BINARY = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_CALLED = {"where": "select", "and": "mask_and", "or": "mask_or", "not": "mask_not"}
_CALLED |= {"xor": "mask_xor"}
_COMPARISON, _NEGATION, _CALL = 0, 3, 4  # how tightly an expression binds


class Text(NamedTuple):
    """An expression, and how tightly its outermost operator binds."""

    code: str
    binding: int = _CALL

    def within(self, binding: int) -> str:
        """As an operand: in parentheses, unless it binds at least as tightly."""
        return self.code if self.binding >= binding else f"({self.code})"


class Names(NamedTuple):
    """What the nodes of a function are called.

    Attributes:
        leaves: how a node is read that the engine provides, as `u.state(H)`.
        indices: the first arguments of a call: enumerators.
        variables: the user's names of values, all different.
        wishes: names of other values, for those that need one.
        uniform: values that are made once for all rows; none where each row is by itself.
        scope: what is taken.
    """

    leaves: Mapping[Node, str]
    indices: Mapping[str, Sequence[str]]
    variables: Mapping[Node, str]
    wishes: Mapping[Node, str]
    uniform: frozenset[Node]
    scope: Scope


def function(name: str, order: Schedule, names: Names) -> list[str]:
    """The lines of `forward` or `backward`."""
    given = dict(names.leaves)
    given |= {node: f"u.total({number})" for node, number in order.totals.items()}
    called: dict[Node, str] = {}
    blocks = [_Block(stage, order, names, given, called).lines() for stage in order.stages]
    if len(blocks) == 1:
        body = blocks[0]
    else:
        body = []
        for number, block in enumerate(blocks):
            start = "if" if number == 0 else "} else if"
            body.append(f"{start} constexpr (Stage == {number}) {{")
            body += [f"  {line}" if line else "" for line in block]
        body.append("}")
    parameters = ["int Stage" if len(blocks) > 1 else "int", "class U"]
    text = "\n".join(body)
    if "V" in text:
        parameters.append("class V = typename U::V")
    if "T(" in text:
        parameters.append("class T = typename V::Scalar")
    return [
        f"template <{', '.join(parameters)}>",
        f"RNNEXT_INLINE static void {name}(U& u) {{",
        *(f"  {line}" if line else "" for line in body),
        "}",
    ]


def constant(value: float) -> str:
    """A number as a vector.

    Example:
        >>> constant(1.0), constant(0.5), constant(0.1), constant(float("-inf"))
        ('V(1)', 'V(0.5)', 'V(T(0.1))', 'V(T(-__builtin_inf()))')
    """
    if math.isnan(value):
        return 'V(T(__builtin_nan("")))'
    if math.isinf(value):
        return f"V(T({'-' if value < 0 else ''}__builtin_inf()))"
    if value == int(value) and abs(value) < 1e6 and math.copysign(1, value) == (value >= 0) * 2 - 1:
        return f"V({int(value)})"
    try:
        exact = struct.unpack("f", struct.pack("f", value))[0] == value
    except OverflowError:
        exact = False
    return f"V({value!r})" if exact else f"V(T({value!r}))"


class _Block:
    """The statements of one stage, values named as they come."""

    def __init__(
        self,
        stage: Stage,
        order: Schedule,
        names: Names,
        given: Mapping[Node, str],
        called: dict[Node, str],
    ) -> None:
        self.tasks = [task for task in stage.tasks if task.call != "hand"]
        self.names = names
        self.slots = order.slots
        self.totals = {total.args[0]: number for total, number in order.totals.items()}
        self.given = {**given, **{n: f"u.value({order.slots[n, n.width]})" for n in stage.reads}}
        self.called = called  # the same name for a value in all stages
        self.texts: dict[Node, Text] = {}
        self.waiting = list(stage.puts)
        self.statements: list[str] = []
        self.last_line = ""
        self.reading = ""  # the last statement, if it only reads values
        self.roots = [task.node for task in self.tasks] + [node for node, _ in stage.puts]
        self.uses = Counter(self.roots)
        for node in needs(self.roots, self.is_given):
            if not self.is_given(node):
                self.uses.update(node.args)

    def is_given(self, node: Node) -> bool:
        """Whether a value is read, not computed."""
        return node in self.given

    def lines(self) -> list[str]:
        """The statements of the stage: what is made once, then the rows one by one."""
        if not self.names.uniform:
            return self.row()
        once = self.once()
        self.statements, self.last_line, self.reading = [], "", ""
        loop = [f"  {line}" for line in self.row()]
        return [*once, "for (; u.has_row(); u.next_row()) {", *loop, "}"]

    def once(self) -> list[str]:
        """Values that are the same in all rows, those named that a row reads."""
        waiting, self.waiting = self.waiting, []
        uniform = self.names.uniform
        for node in needs(self.roots, lambda node: self.is_given(node) or node in uniform):
            if node in uniform and node.op not in ("constant", "size"):
                self.define(node)
                if not self.texts[node].code.isidentifier():
                    self.state(node)
        self.waiting = waiting
        return self.statements

    def row(self) -> list[str]:
        """The calls of the stage, each after what it needs."""
        for task in self.tasks:
            self.define(task.node)
            if task.call != "put":
                self.call(task)
            self.put(task.node)
        for node, _ in list(self.waiting):
            self.define(node)
            self.put(node)
        return self.statements

    def call(self, task: Task) -> None:
        """Write a result."""
        if task.call == "add":
            index = str(self.totals[task.node])
        elif task.call == "add_batch":
            index = str(task.index)
        else:
            index = self.names.indices[task.call][task.index]
        if task.node not in self.called:
            self.comment(task.node)
        self.write(f"u.{task.call}({index}, {self.number(task.node)});")

    def write(self, line: str) -> None:
        """Add a line that no further value shares."""
        self.statements.append(line)
        self.reading = ""

    def put(self, node: Node) -> None:
        """Hand a value on, if it is to be and has not been."""
        for put in [put for put in self.waiting if put[0] is node]:
            self.waiting.remove(put)
            self.write(f"u.put({self.slots[put]}, {self.number(node)});")

    def number(self, node: Node) -> str:
        """A value as a number: of a boolean, 0 or 1."""
        code = self.texts[node].code
        return f"select({code}, V(1), V(0))" if node.boolean else code

    def define(self, root: Node) -> None:
        """Make the text of a node: an expression, or a name after the statement that makes it."""
        for node in needs([root], lambda n: self.is_given(n) or n in self.texts):
            if node in self.texts:
                continue
            text = self.expression(node)
            while len(text.code) > _LONGEST and (parts := self.composed(node)):
                self.state(max(parts, key=lambda part: len(self.texts[part].code)))
                text = self.expression(node)
            self.texts[node] = text
            often = self.uses[node] > 1 and node.op not in ("constant", "size")
            if often or (node in self.names.variables and not self.is_given(node)):
                self.state(node)

    def composed(self, node: Node) -> list[Node]:
        """Arguments that are expressions, neither names nor mere reads."""
        if self.is_given(node):
            return []
        texts = {arg: self.texts[arg].code for arg in node.args if not self.is_given(arg)}
        return [arg for arg, code in texts.items() if not code.isidentifier()]

    def state(self, node: Node) -> None:
        """Give a value a statement of its own."""
        self.comment(node)
        self.declare(node, self.texts[node].code)
        self.put(node)

    def declare(self, node: Node, code: str) -> None:
        """Give a value a name; values that are only read share a line."""
        name = self.name(node)
        self.texts[node] = Text(name)
        kind = "auto" if node.boolean else "V"
        reads = self.is_given(node) and not node.boolean
        shared = f"{self.reading[:-1]}, {name} = {code};"
        if reads and self.reading and len(shared) <= _LONGEST + 20:
            self.statements[-1] = shared
        else:
            self.statements.append(f"const {kind} {name} = {code};")
        self.reading = self.statements[-1] if reads else ""

    def comment(self, node: Node) -> None:
        """The user's line above what came from it."""
        line = split_source(node.source)[1]
        if line and line != self.last_line and not self.is_given(node):
            self.write(f"// {line}")
            self.last_line = line

    def name(self, node: Node) -> str:
        if node not in self.called:
            if node in self.names.variables:
                self.called[node] = self.names.variables[node]
            else:
                wish = self.names.wishes.get(node) or self.names.scope.next("v")
                self.called[node] = self.names.scope.new(wish)
        return self.called[node]

    def expression(self, node: Node) -> Text:
        """What computes or reads a node, its arguments' texts made."""
        if self.is_given(node):
            read = self.given[node]
            if not node.boolean:
                return Text(read)
            return Text(read if node.op == "constant" else f"{read} != V(0)", _COMPARISON)
        args = [self.texts[arg] for arg in node.args]
        if node.op in ("eq", "ne") and node.args[0].boolean:
            code = f"mask_xor({args[0].code}, {args[1].code})"
            return Text(code if node.op == "ne" else f"mask_not({code})")
        if node.op in _BINARY:
            operator, binding = _BINARY[node.op]
            left, right = args[0].within(binding), args[1].within(binding + 1)
            return Text(f"{left} {operator} {right}", binding)
        if node.op in _COMPARISONS:
            left, right = (arg.within(_COMPARISON + 1) for arg in args)
            return Text(f"{left} {_COMPARISONS[node.op]} {right}", _COMPARISON)
        if node.op == "detach":
            return self.texts[node.args[0]]
        if node.op == "neg":
            return Text(f"-{args[0].within(_NEGATION + 1)}", _NEGATION)
        called = _CALLED.get(node.op, node.op)
        return Text(f"{called}({', '.join(arg.code for arg in args)})")
