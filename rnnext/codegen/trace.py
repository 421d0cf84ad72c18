"""Lower a recorded step to the intermediate representation, its derivatives made by torch.

The recording is run again under ``make_fx``, together with ``torch.autograd.grad``: every
convention (relu at 0, ties of maximum, ...) is torch's own. Results of products enter as leaves of
their own and operands are among the results, so that the products' derivatives stay the engine's.
What comes out is a graph of aten operations on (N, width), turned into nodes one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from rnnext.codegen.aten import decompositions
from rnnext.codegen.convert import Converter, Leaf, Result
from rnnext.codegen.errors import cell_error, node_error, spelling
from rnnext.codegen.ir import Node, ProductUse, Program, Width, evaluate
from rnnext.codegen.record import Recording, inputs, replay

_SMOOTH = ("gate", "gate_x", "gate_h", "state", "param", "product")
_COTANGENT = {"next": "dnext", "operand": "doperand"}


def lower(recording: Recording, streams: int = 1) -> Program:
    """The program of a recorded step.

    Args:
        recording: the step.
        streams: 1, or 2 for the jvp cell: values and their tangents.

    Raises:
        CellError: an operation is not supported; the message names it and its line.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        program = _lower_step(recording, keep_detach=streams == 2)
        return program if streams == 1 else _lower_tangents(recording, program)


def _lower_step(recording: Recording, keep_detach: bool) -> Program:
    leaves = _leaves(recording, 1)
    smooth = [leaf for leaf in leaves if leaf.op in _SMOOTH]
    arguments = {leaf.name: leaf for leaf in leaves if leaf.name}
    declaration, count = recording.declaration, len(recording.products)
    kinds = [("next", k) for k in range(len(declaration.states))]
    kinds += [("operand", p) for p in range(count)]

    def step_and_gradients(given: dict[Leaf, Tensor]) -> list[Tensor | None]:
        given |= {leaf: given[leaf].requires_grad_() for leaf in smooth}
        by_kind = {(leaf.op, leaf.index): tensor for leaf, tensor in given.items()}
        values: dict[str, object] = {**declaration.constants, **dict.fromkeys(declaration.matrices)}
        values.update({name: given[leaf] for name, leaf in arguments.items()})
        for leaf in leaves:
            if leaf.op == "ruler":
                values[leaf.name] = given[leaf].shape[-1]
        operands: list[Tensor] = []
        rows = given[leaves[0]].shape[0]

        def product_of(value: Tensor, p: int) -> Tensor:
            operands.append(value)
            if not value.requires_grad:
                detached.add(p)
            return by_kind["product", p]

        def after(node: fx.Node) -> None:
            line = node.meta.get("line")
            _mark(source=line.short() if line is not None else "", call=node)
            _check_sizes(recording, rows, node)

        outputs = [*replay(recording, values, product_of, after=after), *operands]
        cotangents = [by_kind[_COTANGENT[kind], index] for kind, index in kinds]
        gradients = _gradients(recording, outputs, [given[x] for x in smooth], cotangents)
        _check_sizes(recording, rows)
        return [*outputs, *gradients]

    detached: set[int] = set()
    graph = _graph(recording, leaves, step_and_gradients)
    results = [*kinds, *((f"d{leaf.op}", leaf.index) for leaf in smooth)]
    nodes = Converter(recording, leaves, graph, keep_detach).run(results, detached)
    return _program(recording, 1, nodes)


def _lower_tangents(recording: Recording, program: Program) -> Program:
    """The jvp cell, of the step's program.

    Its gradients g = v J are linear in the cotangents v, so differentiating <g, t> by v gives the
    tangents J t, with torch's conventions for J; then once more for their own gradients.
    """
    leaves = _leaves(recording, 2)
    smooth = [leaf for leaf in leaves if leaf.op in _SMOOTH]
    first, second = ([x for x in smooth if x.stream == stream] for stream in (0, 1))
    states, count = len(program.next), len(program.products)
    kinds = [("next", k) for k in range(states)] + [("operand", p) for p in range(count)]
    operands = [use.operands[0] for use in program.products]
    gradients = [_gradient_of(program, leaf) for leaf in first]
    batched = program.has_batch_sums

    def step_and_gradients(given: dict[Leaf, Tensor]) -> list[Tensor | None]:
        varied = [leaf for leaf in leaves if leaf.op in _SMOOTH or leaf.op in _COTANGENT.values()]
        given |= {leaf: given[leaf].requires_grad_() for leaf in varied}
        by_kind = {(leaf.op, leaf.index): tensor for leaf, tensor in given.items()}
        for leaf in leaves:
            if leaf.op == "ruler":
                size = torch.full((), given[leaf].shape[-1], dtype=torch.float32, device="cpu")
                by_kind["size", leaf.index] = size
        rows = given[leaves[0]].shape[0]
        by_kind["batch", 0] = torch.full((), rows, dtype=torch.float32, device="cpu")

        def after(node: Node) -> None:
            _mark(source=node.source) if node.source else None

        values = evaluate([*program.batch_sums, *program.results()], by_kind, after=after)

        def wide(node: Node, leaf: Leaf) -> Tensor:
            return values[node].expand(rows, given[leaf].shape[-1])

        g = [wide(node, leaf) for node, leaf in zip(gradients, first, strict=True)]
        if batched:  # the whole gradient of a param in place of the rows' shares
            g = [x.sum(0) if leaf.op == "param" else x for x, leaf in zip(g, first, strict=True)]
        t = [given[leaf].expand_as(value) for leaf, value in zip(second, g, strict=True)]
        v = [by_kind[_COTANGENT[kind], index] for kind, index in kinds]
        tangents = _gradients(recording, g, v, t, create_graph=True)
        for p, operand in enumerate(operands):
            if operand.op == "state":  # its gradient is not in g
                tangents[states + p] = by_kind["state", states + operand.index]
        offset = {"next": states, "operand": count}
        cotangents = [by_kind[_COTANGENT[kind], index + offset[kind]] for kind, index in kinds]
        more = _gradients(recording, tangents, [given[leaf] for leaf in smooth], cotangents)
        total = [a if b is None else a + b for a, b in zip(g, more, strict=False)]
        primal = [values[node] for node in (*program.next, *operands)]
        _check_sizes(recording, rows)
        return [*primal, *tangents, *total, *more[len(total) :]]

    graph = _graph(recording, leaves, step_and_gradients)
    tangent_kinds = [("next", k + states) for k in range(states)]
    tangent_kinds += [("operand", p + count) for p in range(count)]
    results = [*kinds, *tangent_kinds, *((f"d{leaf.op}", leaf.index) for leaf in first + second)]
    detached = {p for p, operand in enumerate(operands) if operand.op == "detach"}
    nodes = Converter(recording, leaves, graph, False, batched).run(results, detached)
    return _program(recording, 2, nodes)


def _graph(
    recording: Recording,
    leaves: Sequence[Leaf],
    function: Callable[[dict[Leaf, Tensor]], list[Tensor | None]],
) -> fx.Graph:
    """Trace a function of a tensor for each leaf, for all sizes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    sizes: dict[Width, int] = {1: 1, "hidden_size": 7}
    sizes.update({name: 8 + 3 * i for i, name in enumerate(recording.declaration.sizes, 1)})
    examples = [
        torch.zeros(
            *() if leaf.op == "param" else (3,),
            sizes[leaf.width],
            dtype=torch.float32,
            device="cpu",
        )
        for leaf in leaves
    ]

    def flat(*tensors: Tensor) -> list[Tensor | None]:
        return function(dict(zip(leaves, tensors, strict=True)))

    return make_fx(flat, decompositions(), tracing_mode="symbolic")(*examples).graph


def _mark(**meta: object) -> None:
    """Say of the nodes made since the last time where they come from."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    assert mode is not None
    for made in reversed(mode.tracer.graph.nodes):
        if "source" in made.meta or made.op == "placeholder":
            break
        made.meta.update(meta)


def _check_sizes(
    recording: Recording, size: int | torch.SymInt, node: fx.Node | None = None
) -> None:
    """Refuse what holds for some sizes only: tracing keeps what it has assumed of them."""
    if isinstance(size, torch.SymInt) and size.node.shape_env.guards:
        what = "the derivative of its step" if node is None else spelling(node)
        problem = f"{what} is right for some sizes only: take sizes from z.shape or by their names"
        raise node_error(recording.declaration, problem, node)


def _gradients(
    recording: Recording,
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool = False,
) -> list[Tensor | None]:
    flowing = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and output.requires_grad
    ]
    if not flowing:
        return [None] * len(inputs)
    try:
        return list(
            torch.autograd.grad(
                [output for output, _ in flowing],
                inputs,
                [cotangent for _, cotangent in flowing],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    except (RuntimeError, NotImplementedError) as error:
        problem = f"its step has no derivative (value.detach() stops it): {error}"
        raise cell_error(recording.declaration, problem) from error


def _leaves(recording: Recording, streams: int) -> list[Leaf]:
    declaration = recording.declaration
    leaves = []
    for stream in range(streams):
        offset = {
            "param": len(declaration.params) * stream,
            "state": len(declaration.states) * stream,
        }
        gates = sum(map(len, (declaration.gates, declaration.apart_gates, declaration.input_gates)))
        for given in inputs(declaration):
            name, op, width = given.name, given.op, given.width
            if op == "size" and stream == 0:
                leaves.append(Leaf("ruler", given.index, name, name))
            elif op == "noise" and stream == 0:
                leaves.append(Leaf(op, given.index, width, name))
            elif op not in ("size", "noise", "matrix"):
                index = given.index + offset.get(op, gates * stream)
                leaves.append(Leaf(op, index, width, name, stream))
        count = len(recording.products)
        for p, matrix in enumerate(recording.products):
            to, source = list(declaration.matrices.values())[matrix]
            leaves.append(Leaf("product", count * stream + p, to, stream=stream))
            leaves.append(Leaf("doperand", count * stream + p, source, stream=stream))
        for k, width in enumerate(declaration.states.values()):
            index = offset["state"] + k
            leaves.append(Leaf("dnext", index, width, stream=stream))
    return leaves


def _program(recording: Recording, streams: int, nodes: dict[Result, Node]) -> Program:
    declaration = recording.declaration
    matrices = list(declaration.matrices.values())
    count = len(recording.products)

    def all_of(kind: str) -> list[Node]:
        return [nodes[key] for key in sorted(nodes) if key[0] == kind]

    def by_index(kind: str) -> dict[int, Node]:
        return {key[1]: nodes[key] for key in sorted(nodes) if key[0] == kind}

    products = [
        ProductUse(
            matrix,
            *matrices[matrix],
            tuple(nodes["operand", p + count * s] for s in range(streams)),
        )
        for p, matrix in enumerate(recording.products)
    ]
    return Program(
        declaration,
        streams,
        next=all_of("next"),
        products=products,
        dstate=all_of("dstate"),
        da=by_index("dgate"),
        dx=by_index("dgate_x"),
        dr=by_index("dgate_h"),
        dparam=all_of("dparam"),
        dproduct=all_of("dproduct"),
    )


def _gradient_of(program: Program, leaf: Leaf) -> Node:
    tables = {
        "gate": program.da,
        "gate_x": program.dx,
        "gate_h": program.dr,
        "state": program.dstate,
        "param": program.dparam,
        "product": program.dproduct,
    }
    return tables[leaf.op][leaf.index]  # type: ignore[index]
