"""Record a cell's step as a graph of torch calls: quick, and what is wrong in it is said here.

The step is run with stand-ins for tensors, so helper functions and Python control flow on constants
are simply gone from the graph, and its text is a key for the compiled cell.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rnnext.codegen.errors import (
    CellError,
    Line,
    call_error,
    cell_error,
    first_line,
    node_error,
    qualified,
    raised,
)
from rnnext.codegen.examples import Examples, call
from rnnext.codegen.ir import Width
from rnnext.codegen.matrices import find_products, product
from rnnext.codegen.tracer import Tracer

if TYPE_CHECKING:
    from rnnext.cell import Declaration


@dataclass(frozen=True)
class Input:
    """What a step may take as an argument."""

    name: str
    op: str  # the leaf of the graph, or "matrix"
    index: int
    width: Width


@dataclass(frozen=True)
class Recording:
    """A step as a graph of torch calls; ``text`` says all of the cell, but where it was written."""

    declaration: Declaration
    graph: fx.Graph
    text: str
    products: tuple[int, ...]  # which matrix each product takes


def inputs(declaration: Declaration) -> list[Input]:
    """Everything that is declared, apart from the constants."""
    found = [Input(name, "gate", g, "hidden_size") for g, name in enumerate(declaration.gates)]
    for name in declaration.apart_gates:
        index = len(declaration.gates) + (len(found) - len(declaration.gates)) // 2
        found.append(Input(f"{name}_x", "gate_x", index, "hidden_size"))
        found.append(Input(f"{name}_h", "gate_h", index, "hidden_size"))
    first = len(declaration.gates) + len(declaration.apart_gates)
    for g, name in enumerate(declaration.input_gates, first):
        found.append(Input(name, "gate_x", g, "hidden_size"))
    widths: list[tuple[str, list[tuple[str, Width]]]] = [
        ("state", list(declaration.states.items())),
        ("param", [(name, param.size) for name, param in declaration.params.items()]),
        ("noise", [(name, noise.size) for name, noise in declaration.noise.items()]),
        ("matrix", [(name, to) for name, (to, _) in declaration.matrices.items()]),
        ("size", [(name, 1) for name in ("hidden_size", *declaration.sizes)]),
    ]
    return found + [
        Input(name, op, index, width)
        for op, named in widths
        for index, (name, width) in enumerate(named)
    ]


def record(declaration: Declaration) -> Recording:
    """Run a step with stand-ins and check what it does and returns.

    Later calls return the same recording, so that a cell and its derivatives, which are compiled
    when they are first needed, are of one step whatever it reads from outside.

    Raises:
        CellError: the step does what cannot be compiled, or returns something else than its
            states; the message gives the line.
    """
    kept = vars(declaration)  # beside its fields, as a cached property would be
    if "_recording" not in kept:
        kept["_recording"] = _record(declaration)
    return kept["_recording"]


def _record(declaration: Declaration) -> Recording:
    graph, again = _run(declaration), _run(declaration)
    for node, same in zip(graph.nodes, again.nodes, strict=False):
        if _node_text(node) != _node_text(same):
            problem = (
                "its step is not the same each time it is run: it is a pure function of its "
                "arguments; random numbers are declared in `noise`, what goes from step to step "
                "in `states`"
            )
            raise node_error(declaration, problem, node)
    graph.eliminate_dead_code()  # products among it would count
    products = find_products(declaration, graph)
    graph.eliminate_dead_code()  # transposed matrices
    recording = Recording(declaration, graph, _text(declaration, graph), products)
    _check_shapes(recording)
    return recording


def _run(declaration: Declaration) -> fx.Graph:
    """The graph of one run of a step."""
    given = inputs(declaration)
    tracer = Tracer(declaration, given)
    values: dict[str, object] = dict(declaration.constants)
    for each in given:
        values[each.name] = tracer.create_proxy("placeholder", each.name, (), {})
    dice = _dice()
    try:
        with tracer.running():
            returned = declaration.step(**{name: values[name] for name in declaration.arguments})
    except CellError:
        raise
    except Exception as error:
        line = Line.of_error(error)
        raise cell_error(declaration, f"its step raised {raised(error)}", line) from error
    if tracer.failure is not None:
        raise tracer.failure
    if _dice() != dice:
        raise cell_error(declaration, "its step draws random numbers: declare them in `noise`")
    tracer.create_node("output", "output", (_checked(tracer, returned),), {})
    return tracer.graph


def replay(
    recording: Recording,
    values: Mapping[str, object],
    product_of: Callable[[Any, int], Any],
    before: Callable[[fx.Node], None] = lambda node: None,
    after: Callable[[fx.Node], None] = lambda node: None,
    explain: Callable[[Exception, tuple[Any, ...]], str] = lambda error, args: first_line(error),
) -> tuple[Any, ...]:
    """Run a recorded graph.

    Args:
        recording: the step.
        values: of its inputs, by name.
        product_of: makes a product of a value and its number; called in their order.
        before, after: called with each node.
        explain: says what is wrong with a call, given its error and arguments.
    """
    known: dict[fx.Node, Any] = {}
    count = 0
    for node in recording.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: known[arg])
        before(node)
        try:
            if node.op == "placeholder":
                known[node] = values[node.target]
            elif node.op == "output":
                return tuple(args[0])
            elif node.target is product:
                known[node] = product_of(args[0], count)
                count += 1
            else:
                known[node] = call(node, args, kwargs)
        except CellError:
            raise
        except Exception as error:
            raise call_error(recording.declaration, node, explain(error, args)) from error
        after(node)
    raise AssertionError("a recorded graph ends with its output")


def _dice() -> object:
    """The state of the generators that only Python code draws from."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), pickle.dumps(numpy.random.get_state(legacy=False)) if numpy else b""


def _checked(tracer: Tracer, returned: object) -> tuple[fx.Node, ...]:
    declaration = tracer.declaration
    names = ", ".join(declaration.states)
    wanted = f"the new states ({names}), {len(declaration.states)} in all, in this order"
    given = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    if len(given) == 1 and given[0] is None:
        problem = f"its step returns nothing: return {wanted}"
    elif len(given) != len(declaration.states):
        problem = f"its step returns {len(given)} values: return {wanted}"
    else:
        for name, value in zip(declaration.states, given, strict=True):
            if not isinstance(value, fx.Proxy) or value.tracer is not tracer:
                outside = isinstance(value, (Tensor, fx.Proxy))
                kind = "a tensor from outside" if outside else repr(value)
                problem = f"its step returns {kind} for state {name!r}: return {wanted}, as tensors"
                raise cell_error(declaration, problem)
        return tuple(value.node for value in given)
    raise cell_error(declaration, problem)


def _text(declaration: Declaration, graph: fx.Graph) -> str:
    lines = [repr(given) for given in inputs(declaration)]
    lines += [f"{name}: {sizes}" for name, sizes in declaration.matrices.items()]
    lines += [f"{name}: {noise!r}" for name, noise in declaration.noise.items()]
    return "\n".join([*lines, *map(_node_text, graph.nodes)])


def _node_text(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else qualified(node.target)
    named = [f"{key}={value!r}" for key, value in sorted(node.kwargs.items())]
    return f"{node.name} = {node.op} {target}({', '.join([*map(repr, node.args), *named])})"


def _check_shapes(recording: Recording) -> None:
    """Run the graph on small tensors, and look at what comes out."""
    declaration = recording.declaration
    examples = Examples(declaration, inputs(declaration))
    nodes: list[fx.Node] = []

    def product_of(value: Any, count: int) -> Tensor:
        name, (to, source) = list(declaration.matrices.items())[recording.products[count]]
        if not examples.is_rows(value, source):
            shape = examples.shape_text(value)
            problem = f"a product with {name!r} takes (N, {source}), got {shape}"
            raise node_error(declaration, problem, nodes[-1])
        return examples.rows(to)

    with torch.inference_mode(False), torch.no_grad():
        returned = replay(
            recording, examples.inputs, product_of, nodes.append, explain=examples.explain
        )
    made = list(recording.graph.nodes)[-1].args[0]
    for (name, width), value, node in zip(declaration.states.items(), returned, made, strict=True):
        problem = ""
        if not examples.is_rows(value, width):
            shape = examples.shape_text(value)
            problem = f"state {name!r} must be (N, {width}), got {shape}"
        elif not value.is_floating_point():
            problem = f"state {name!r} must be floating point, got {value.dtype}: use torch.where"
        if problem:
            raise node_error(declaration, problem, node if node.op != "placeholder" else None)
