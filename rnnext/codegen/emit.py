"""The C++ header of a program: a struct like the cells in csrc/cells/, with their conventions."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence

from rnnext.codegen import names
from rnnext.codegen.errors import cell_error
from rnnext.codegen.function import Names, constant, function
from rnnext.codegen.ir import BATCH_SUMS, Node, Program, Width, walk
from rnnext.codegen.plan import Plan, plan, state_width
from rnnext.codegen.schedule import Schedule

_COLUMNS = 120
_MOST_VALUES = 96  # as kMaxValues in csrc/engine/cell.h, where the other limits are too

# The enumeration that a call's first argument is from; a leaf is read by the call of its name.
_ENUM_OF = {
    **dict.fromkeys(("gate", "gate_x", "gate_h", "a", "x", "r", "da", "dx", "dr"), "Gate"),
    **dict.fromkeys(("state", "next", "dnext", "dstate"), "State"),
    **dict.fromkeys(("param", "dparam"), "Param"),
    **dict.fromkeys(("product", "dproduct", "doperand"), "Product"),
    **dict.fromkeys(("save", "saved"), "Saved"),
    "noise": "Noise",
}
_KINDS = {"Dropout": 0, "Bernoulli": 1, "Normal": 2, "Uniform": 3}


def header(program: Program, name: str) -> str:
    """The text of a C++ header with the cell's struct.

    Args:
        program: what the step and its backward compute.
        name: of the cell for the engine.

    Raises:
        CellError: the cell has more of something than the engine takes.
    """
    _check_declared(program)
    how = plan(program)
    _check_planned(how)
    return Header(how, name).text()


def struct_name(program: Program) -> str:
    """The name of the struct in the header."""
    name = names.identifier(program.declaration.name)
    return f"{name}Cell" if name in names.RESERVED else name


def _check_declared(program: Program) -> None:
    """Before the plan, which takes long of a large cell."""
    cell = program.declaration
    gradients = [program.da, program.dx, program.dr, program.dproduct, program.dparam]
    _check(
        program,
        {
            "states": (len(program.next), 16),
            "params": (len(program.dparam), 32),
            "matrices": (len(cell.matrices), 8),
            "products": (len(program.products), 16),
            "kinds of noise": (len(cell.noise), 8),
            "sizes besides hidden_size": (len(cell.sizes), 7),
            "gates (those apart twice), products and params": (
                sum(map(len, gradients)),
                _MOST_VALUES,
            ),
        },
    )


def _check_planned(how: Plan) -> None:
    old = how.program.streams * (len(how.program.declaration.states) - 1)
    counts = {"values kept for the backward, old states among them": len(how.saved) + old}
    stages = {}
    for direction, order in (("forward", how.forward), ("backward", how.backward)):
        counts[f"values between its {direction} stages"] = len(order.slots)
        counts[f"sums over units in its {direction}"] = len(order.totals)
        sums = how.program.batch_sums if direction == "forward" else how.program.back_batch_sums
        counts[f"sums over the batch in its {direction}"] = len(sums)
        stages[f"{direction} stages"] = (len(order.stages), 16)
    _check(how.program, stages | {what: (count, _MOST_VALUES) for what, count in counts.items()})


def _check(program: Program, counts: Mapping[str, tuple[int, int]]) -> None:
    for what, (count, most) in counts.items():
        if count > most:
            whose = "it has" if program.streams == 1 else "its second derivative has"
            problem = (
                f"{whose} {count} {what}, the engine takes at most {most}: compute less in one "
                "step, or split the cell into several layers"
            )
            raise cell_error(program.declaration, problem)


class Header:
    """The parts of one header."""

    def __init__(self, how: Plan, name: str) -> None:
        self.plan = how
        self.program = how.program
        self.name = name
        self._name_constants()
        self._name_variables()

    def _all_sizes(self) -> list[str]:
        return ["hidden_size", *self.program.declaration.sizes]

    def _name_constants(self) -> None:
        """Names of the enumerators: the user's in upper case, with their kind where taken."""
        cell = self.program.declaration
        groups = {
            "Gate": names.gates(self.program),
            "State": names.streamed(self.program, list(cell.states)),
            "Param": names.streamed(self.program, list(cell.params)),
            "Noise": list(cell.noise),
            "Product": names.products(self.program),
        }
        scope = names.Scope({struct_name(self.program)})
        self.enums: dict[str, list[str]] = {}
        for kind, members in groups.items():
            self.enums[kind] = []
            for member in members:
                plain = names.identifier(member).upper()
                taken = plain in scope.taken
                self.enums[kind].append(scope.new(f"{kind.upper()}_{plain}" if taken else plain))
        self.enums["Saved"] = [
            scope.new(names.identifier(f"SAVED_{saved.name or j}").upper())
            for j, saved in enumerate(self.plan.saved)
        ]
        self.scope = scope
        self.indices = {call: self.enums[kind] for call, kind in _ENUM_OF.items()}

    def _name_variables(self) -> None:
        """Names of values: the user's, and for leaves and gradients the declared ones."""
        program, cell = self.program, self.program.declaration
        self.variables = {
            node: self.scope.new(name) for node, name in names.variables(program).items()
        }
        gates, states = names.gates(program), names.streamed(program, list(cell.states))
        params = names.streamed(program, list(cell.params))
        self.wishes: dict[Node, str] = {}  # names of values that need one because they recur
        for call, by_gate in (("da", program.da), ("dx", program.dx), ("dr", program.dr)):
            for g, node in by_gate.items():
                self.wishes.setdefault(node, f"{call}_{gates[g]}")
        pairs = [*zip(program.dparam, params, strict=True)]
        pairs += zip(program.dproduct, names.products(program), strict=True)
        for node, name in pairs:
            self.wishes.setdefault(node, f"d{name}")
        for node in walk(program.results()):
            if name := names.leaf_name(program, node):
                self.wishes[node] = name
            elif node.op == "sum" or node.op in BATCH_SUMS:
                self.wishes[node] = "total"
            elif node.op == "add" and any(arg.op == "dnext" for arg in node.args):
                k = next(arg.index for arg in node.args if arg.op == "dnext")
                self.wishes.setdefault(node, f"d{states[k]}")
            elif len(node.args) == 1 and node.args[0] in self.variables:
                self.wishes.setdefault(node, f"{node.op}_{self.variables[node.args[0]]}")

    def _leaves(self) -> dict[Node, str]:
        """How the engine's values are read."""
        calls = {"gate": "a", "gate_x": "x", "gate_h": "r"}
        found = {}
        for node in walk([*self.program.results(), *(saved.node for saved in self.plan.saved)]):
            if node.op == "constant":
                truth = "V(0) < V(1)" if node.value else "V(1) < V(0)"
                found[node] = truth if node.boolean else constant(node.value)
            elif node.op == "size":
                found[node] = f"u.size({self.width(self._all_sizes()[node.index])})"
            elif node.op == "batch":
                found[node] = "u.batch()"
            elif node.op in BATCH_SUMS:
                found[node] = f"u.batch_sum({node.index})"
            elif node.op in _ENUM_OF:
                call = calls.get(node.op, node.op)
                found[node] = f"u.{call}({self.indices[call][node.index]})"
        return found

    def _functions(self) -> list[str]:
        """Both functions."""
        leaves, uniform = self._leaves(), self.program.uniform()
        returned = dict(leaves)
        for node in self.program.batch_sums:
            returned[node] = f"u.forward_batch_sum({node.index})"
        for j, saved in enumerate(self.plan.saved):
            if saved.width == saved.node.width and saved.node not in uniform:
                returned[saved.node] = f"u.saved({self.indices['saved'][j]})"
        for k, node in enumerate(self.program.next):
            if node.width == state_width(self.program, k) and node not in {*leaves, *uniform}:
                returned[node] = f"u.next({self.indices['next'][k]})"
        lines = []
        for name, order, given in (
            ("forward", self.plan.forward, leaves),
            ("backward", self.plan.backward, returned),
        ):
            scope = names.Scope(self.scope.taken)
            called = Names(given, self.indices, self.variables, self.wishes, uniform, scope)
            lines += ["", *function(name, order, called)]
        return lines

    def text(self) -> str:
        """The whole header."""
        body = [self._shape(), *self._enums(), *self._functions()]
        lines = [
            *self._comment(),
            "#pragma once",
            "",
            '#include "cells/math.h"',
            '#include "engine/cell.h"',
            "",
            "namespace rnnext::RNNEXT_ISA {",
            "",
            f"struct {struct_name(self.program)} {{",
            textwrap.indent("\n".join(body), "  "),
            "};",
            "",
            "}  // namespace rnnext::RNNEXT_ISA",
        ]
        return "\n".join(lines) + "\n"

    def _comment(self) -> list[str]:
        """The declaration, and the user's step."""
        cell = self.program.declaration
        tangents = ", values and their tangents" if self.program.streams == 2 else ""
        lines = [f"{cell.name}{tangents}, generated from Python.", ""]
        for group in ("gates", "apart_gates", "input_gates", "sizes"):
            if value := getattr(cell, group):
                lines.append(f"  {group}: {', '.join(value)}")
        sized = {name: param.size for name, param in cell.params.items()}
        for group, widths in (("states", cell.states), ("params", sized)):
            shown = [n if w == "hidden_size" else f"{n} ({w})" for n, w in widths.items()]
            lines += [f"  {group}: {', '.join(shown)}"] * bool(shown)
        lines += [f"  matrix {name}: ({to}, {of})" for name, (to, of) in cell.matrices.items()]
        lines += [f"  noise {name}: {noise}" for name, noise in cell.noise.items()]
        try:
            step = textwrap.dedent(inspect.getsource(cell.step)).rstrip().splitlines()
        except (OSError, TypeError):  # typed in where no file is, or not a plain function
            nodes = walk(names.forward_results(self.program))
            step = list(dict.fromkeys(names.split_source(n.source)[1] for n in nodes if n.source))
        lines += ["", *(f"  {line}" for line in step)] if step else []
        return [f"// {line}".rstrip().rstrip("\\").rstrip() for line in lines]

    def _enums(self) -> list[str]:
        return [
            _wrapped(f"enum {kind} {{ {', '.join(members)} }};", "")
            for kind, members in self.enums.items()
            if members
        ]

    def _shape(self) -> str:
        """The declaration of the shape: what differs from the defaults, in the order of fields."""
        program, cell, how = self.program, self.program.declaration, self.plan
        quoted = self.name.replace("\\", "\\\\").replace('"', '\\"')
        fields = {"name": f'"{quoted}"'}
        numbers = {
            "sizes": (len(cell.sizes), 0),
            "streams": (program.streams, 1),
            "summed": (len(cell.gates), 0),
            "apart": (len(cell.apart_gates), 0),
            "input": (len(cell.input_gates), 0),
        }
        fields |= {key: str(value) for key, (value, usual) in numbers.items() if value != usual}
        states = self._group(list(cell.states.values()))
        if states != "{1}":
            fields["states"] = states
        if cell.params:
            fields["params"] = self._group([param.size for param in cell.params.values()])
        if cell.matrices:
            fields["matrices"] = str(len(cell.matrices))
        if how.products:
            fields["products"] = str(len(how.products))
            fields["product"] = f"{{{', '.join(self._products())}}}"
        if cell.noise:
            fields["noises"] = str(len(cell.noise))
            fields["noise"] = f"{{{', '.join(self._noises())}}}"
        for direction, order in (("forward", how.forward), ("backward", how.backward)):
            stages = self._stages(order)
            if len(stages) > 1:
                fields[f"{direction}_stages"] = str(len(stages))
            if set(stages) != {"{}"}:
                fields[direction] = f"{{{', '.join(stages)}}}"
        groups = {
            "saved": [saved.width for saved in how.saved],
            "values": [width for _, width in how.forward.slots],
            "back_values": [width for _, width in how.backward.slots],
            "batch_sums": [node.width for node in program.batch_sums],
            "back_batch_sums": [node.width for node in program.back_batch_sums],
        }
        fields |= {key: self._group(widths) for key, widths in groups.items() if widths}
        start = "static constexpr CellShape shape{"
        parts = [f".{key} = {value}" for key, value in fields.items()]
        line = f"{start}{', '.join(parts)}}};"
        if len(line) <= _COLUMNS - 2:
            return line
        margin = " " * (len(start) - 2)
        parts[1:] = [_wrapped(part, margin) for part in parts[1:]]
        separator = f",\n{margin}  "
        return f"{start}{separator.join(parts)}}};"

    def width(self, width: Width) -> str:
        """A width as the engine numbers it."""
        if width == 1:
            return "kOne"
        number = self._all_sizes().index(str(width))
        return str(number) if number else "kHidden"

    def _group(self, widths: Sequence[Width]) -> str:
        shown = [self.width(width) for width in widths]
        if set(shown) <= {"kHidden"}:
            return f"{{{len(shown)}}}"
        return f"{{{len(shown)}, {{{', '.join(shown)}}}}}"

    def _products(self) -> list[str]:
        found = []
        for product in self.plan.products:
            use = product.use
            fields = {"matrix": str(use.matrix)} if use.matrix else {}
            widths = {"to": self.width(use.to), "from": self.width(use.source_width)}
            fields |= {key: width for key, width in widths.items() if width != "kHidden"}
            if product.state >= 0:
                fields["state"] = str(product.state)
            else:
                fields["value"] = f"{{{', '.join(map(str, product.values))}}}"
                fields["saved"] = f"{{{', '.join(map(str, product.saved))}}}"
                fields["before"] = str(product.before)
                fields["returns"] = str(product.returns)
            found.append(f"{{{', '.join(f'.{key} = {value}' for key, value in fields.items())}}}")
        return found

    def _noises(self) -> list[str]:
        return [
            f"{{{_KINDS[type(noise).__name__]}, {self.width(noise.size)}, "
            f"{'true' if noise.per == 'sequence' else 'false'}, {noise.a!r}, {noise.b!r}}}"
            for noise in self.program.declaration.noise.values()
        ]

    def _stages(self, order: Schedule) -> list[str]:
        found, first = [], 0
        for stage in order.stages:
            totals = sum(task.call == "add" for task in stage.tasks)
            fields = [] if stage.width == "hidden_size" else [f".width = {self.width(stage.width)}"]
            if totals:
                fields += [f".first_total = {first}"] * (first > 0) + [f".totals = {totals}"]
            if any(task.call == "add_batch" for task in stage.tasks):
                fields.append(".sums_batch = true")
            found.append(f"{{{', '.join(fields)}}}")
            first += totals
        return found


def _wrapped(part: str, margin: str) -> str:
    """A list in braces on lines that are short enough, its elements below each other."""
    inner = margin + " " * (part.find("{") + 3)
    unbroken = part.replace(" = ", "\xa0=\xa0")
    width = _COLUMNS - len(inner) - 2
    lines = textwrap.wrap(unbroken, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{inner}".join(lines).replace("\xa0", " ")
