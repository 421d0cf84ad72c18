"""What a step keeps for its backward, what the backward makes again, and the stages of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rnnext.codegen import names
from rnnext.codegen.cut import cheapest_closure
from rnnext.codegen.errors import cell_error
from rnnext.codegen.ir import BATCH_SUMS, Node, ProductUse, Program, Width, walk, with_gradient
from rnnext.codegen.schedule import Graph, Schedule, Task, cost, needs, schedule

_READ_BY_BOTH = frozenset({"state", "param", "noise", "size", "constant", "batch"})
_FREE = _READ_BY_BOTH | {"batch_sum"}  # of the forward
_GATES = frozenset({"gate", "gate_x", "gate_h"})

KEEP = 1.0
"""The cost of keeping a value for the backward: a store, a load, and memory in training."""

KEEP_ONE = 0.05
"""The same of one value a row."""


@dataclass(frozen=True)
class Saved:
    """A value that the forward keeps for the backward.

    Attributes:
        node: the value.
        width: how many a row; a node of width one is widened where a product needs it so.
        name: the user's variable, or what a leaf is called, or "".
        reason: why it is kept.
    """

    node: Node
    width: Width
    name: str
    reason: str


@dataclass(frozen=True)
class ProductPlan:
    """A product's operands and times: `before` a forward stage, back before a backward stage.

    A product with a state (of each stream) is made before the first stage and comes back at the
    end. Otherwise `values` and `saved` are numbers of its operands among the values handed
    between stages and among those saved, one for each stream.
    """

    use: ProductUse
    state: int = -1
    values: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    before: int = 0
    returns: int = 0


@dataclass
class Plan:
    """How a program runs. `print` it to see what is kept, and why.

    Attributes:
        program: what was planned.
        saved: what the forward keeps.
        again: forward values that the backward makes again, with what that costs.
        forward: stages of the step.
        backward: stages of its backward.
        products: of one stream.
    """

    program: Program
    saved: list[Saved]
    again: list[tuple[Node, float]]
    forward: Schedule
    backward: Schedule
    products: list[ProductPlan]

    def __str__(self) -> str:
        name = self.program.declaration.name
        lines = [
            f"{name}: {_count(len(self.saved), 'value')} kept, "
            f"{_count(len(self.forward.stages), 'stage')} forward, "
            f"{_count(len(self.backward.stages), 'stage')} backward"
        ]
        lines += [f"  kept: {_label(s.name, s.node, s.width)}: {s.reason}" for s in self.saved]
        found = names.variables(self.program)
        for node, price in self.again:
            label = _label(found.get(node, ""), node, node.width)
            lines.append(f"  made again: {label}: costs {price:.2f}, keeping it {_keep(node):.2f}")
        for direction, order in (("forward", self.forward), ("backward", self.backward)):
            for number, stage in enumerate(order.stages):
                called = [task for task in stage.tasks if task.call != "hand"]
                calls = ", ".join(f"{task.call} {task.index}" for task in called)
                calls = calls or f"{_count(len(stage.puts), 'value')} for later stages"
                lines.append(f"  {direction} stage {number} of {stage.width}: {calls}")
        return "\n".join(lines)


def plan(program: Program) -> Plan:
    """Choose what to keep and order a program's work.

    Raises:
        CellError: values of different widths meet in one that is no product and no sum.
    """
    kept = _choose(program)
    operands = dict(_operands(program))
    found = names.variables(program)
    saved = [
        Saved(
            node,
            width,
            found.get(node, "") or names.leaf_name(program, node),
            _reason(program, node, operands),
        )
        for node, width in kept
    ]
    forward, operand_tasks = _forward_graph(program, saved)
    backward = _backward_graph(program, saved)
    try:
        steps, back = schedule(forward), schedule(backward)
    except ValueError as error:
        raise cell_error(program.declaration, str(error)) from error
    stages = [*steps.stages, *back.stages]
    if program.has_batch_sums and any(stage.width == 1 for stage in stages):
        problem = "its step has sums over the batch and beside them results of one value a row"
        raise cell_error(program.declaration, problem)
    products = []
    for number, use in enumerate(program.products):
        if (state := state_of(program, use)) >= 0:
            products.append(ProductPlan(use, state))
            continue
        keys = [(operand, use.source_width) for operand in use.operands]
        writes = [
            task
            for task in backward.tasks
            if task.call == "dproduct" and task.index % len(program.products) == number
        ]
        products.append(
            ProductPlan(
                use,
                values=tuple(steps.slots[key] for key in keys),
                saved=tuple(kept.index(key) for key in keys),
                before=1 + max(steps.stage_of(task) for task in operand_tasks[number]),
                returns=1 + max(back.stage_of(task) for task in writes),
            )
        )
    return Plan(program, saved, _made_again(program, backward), steps, back, products)


def state_of(program: Program, use: ProductUse) -> int:
    """The state that a product multiplies as it is, or -1."""
    states = len(program.declaration.states)
    first = use.operands[0]
    matching = all(
        operand.op == "state" and operand.index == first.index + stream * states
        for stream, operand in enumerate(use.operands)
    )
    return first.index if matching else -1


def state_width(program: Program, index: int) -> Width:
    """The width of a state of any stream."""
    widths = list(program.declaration.states.values())
    return widths[index % len(widths)]


def param_width(program: Program, index: int) -> Width:
    """The width of a param of any stream."""
    params = list(program.declaration.params.values())
    return params[index % len(params)].size


def _operands(program: Program) -> Iterator[tuple[Node, Width]]:
    """Operands of products that are no states, as wide as their products need them."""
    for use in program.products:
        if state_of(program, use) < 0:
            for operand in use.operands:
                yield operand, use.source_width


def _next_states(program: Program) -> set[Node]:
    """Nodes that are a new state: the backward reads them as such."""
    return {n for k, n in enumerate(program.next) if n.width == state_width(program, k)}


def _gradients(program: Program) -> list[Node]:
    """All that the backward computes."""
    by_gate = [*program.da.values(), *program.dx.values(), *program.dr.values()]
    return [*by_gate, *program.dparam, *program.dproduct, *program.dstate]


def _choose(program: Program) -> list[tuple[Node, Width]]:
    """The values to keep: a minimum cut between the forward and what the gradients need.

    Each value without a gradient in it may be kept, or computed in the backward, which then needs
    its arguments. Gates and products cannot be computed, nor are totals of the forward; its sums
    over the batch the engine keeps. Operands of products are kept in any case: the matrix's
    gradient needs them.
    """
    uniform = program.uniform()
    forced = dict.fromkeys(_operands(program))
    free = _next_states(program) | {node for node, width in forced if node.width == width}
    of_forward = set(walk(names.forward_results(program)))
    roots = _gradients(program)
    gradients = with_gradient(roots)

    def is_free(node: Node) -> bool:
        return node in free or node.op in _FREE

    def price(node: Node) -> float:
        return 0.0 if node in uniform else cost(node)

    needed = [root for root in roots if root not in gradients]
    needed += [arg for node in gradients for arg in node.args if arg not in gradients]
    needed = [node for node in dict.fromkeys(needed) if not is_free(node)]
    weights: dict[tuple[str, Node], int] = {}
    implies = []
    for node in needs(needed, is_free):
        if is_free(node):
            continue
        keep = _keep(node)
        if node not in of_forward:  # the forward would have to compute it first
            chain = needs([node], lambda n: n in of_forward)
            keep += 0.01 + sum(price(n) for n in chain if n not in of_forward)
        weights["need", node] = round(1000 * keep)
        from_forward = node in of_forward and node.op == "sum"
        if node.op in _GATES or node.op == "product" or from_forward:
            continue
        weights["compute", node] = round(1000 * (price(node) - keep))
        implies.append((("compute", node), ("need", node)))
        implies += [(("compute", node), ("need", arg)) for arg in node.args if not is_free(arg)]
    chosen = cheapest_closure(weights, implies, [("need", node) for node in needed])
    kept = dict(forced)
    for what, node in weights:
        if what == "need" and ("need", node) in chosen and ("compute", node) not in chosen:
            kept.setdefault((node, node.width))
    order = {node: i for i, node in enumerate(walk([node for node, _ in kept]))}
    return sorted(kept, key=lambda key: (_line(key[0]), order[key[0]]))


def _keep(node: Node) -> float:
    return KEEP_ONE if node.width == 1 else KEEP


def _line(node: Node) -> int:
    """The number of the user's line that a node comes from."""
    number = names.split_source(node.source)[0].rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _reason(program: Program, node: Node, operands: dict[Node, Width]) -> str:
    if node in operands:
        return "a product's operand, which the gradient of the matrix needs"
    if node.op in _GATES:
        return "a gate, which is not there in the backward"
    if node.op == "product":
        return "a product's result, which is not made again"
    if node.op == "sum":
        return "a total, which is not made again"
    cut = needs([node], lambda n: n.op in _FREE)
    price = sum(cost(n) for n in cut if n.op not in _FREE | _GATES)
    lost = sum(n.op in _GATES | {"product", "sum"} for n in cut)
    return (
        f"making it again would cost {price:.2f} and {_count(lost, 'value')} kept for it"
        if lost
        else f"making it again would cost {price:.2f}, keeping it {_keep(node):.2f}"
    )


def _sums(nodes: list[Node]) -> Iterator[tuple[Node, Task]]:
    """The sums among nodes, each with the task that adds it up."""
    for node in nodes:
        if node.op == "sum" or node.op in BATCH_SUMS:
            call = "add" if node.op == "sum" else "add_batch"
            yield node, Task(call, node.index, node.args[0], node.args[0].width)


def _forward_graph(program: Program, saved: list[Saved]) -> tuple[Graph, dict[int, list[Task]]]:
    """The step as tasks, and among them those that hand operands to products."""
    operands = {
        number: [Task("put", number, node, use.source_width) for node in use.operands]
        for number, use in enumerate(program.products)
        if state_of(program, use) < 0
    }
    tasks = [Task("save", j, s.node, s.width) for j, s in enumerate(saved)]
    tasks += [task for puts in operands.values() for task in puts]
    news = [Task("next", k, node, state_width(program, k)) for k, node in enumerate(program.next)]
    tasks += news
    roots = [*program.batch_sums, *(task.node for task in tasks)]
    nodes = needs(roots, lambda node: False)
    sums = dict(_sums(nodes))
    after = {node: [task] for node, task in sums.items()}
    for node in nodes:
        if node.op == "product":
            after[node] = operands.get(node.index % len(program.products), [])
    tasks = [*sums.values(), *tasks]
    leaves = _READ_BY_BOTH | _GATES
    overwrites = {("state", task.index): task for task in news}
    graph = Graph(tasks, lambda node: node.op in leaves, after, overwrites, program.uniform())
    return graph, operands


def _backward_graph(program: Program, saved: list[Saved]) -> Graph:
    """The backward as tasks."""
    uniform = program.uniform()
    kept = {s.node for s in saved if s.width == s.node.width} | _next_states(program)
    kept -= uniform  # made again, these are not read for each row
    hidden: Width = "hidden_size"
    tasks = [
        Task(call, index, node, hidden)
        for call, by_gate in (("da", program.da), ("dx", program.dx), ("dr", program.dr))
        for index, node in by_gate.items()
    ]
    tasks += [Task("dparam", k, n, param_width(program, k)) for k, n in enumerate(program.dparam)]
    count = len(program.products)
    returning = [
        Task("dproduct", p, n, program.products[p % count].to)
        for p, n in enumerate(program.dproduct)
    ]
    states = [
        Task("dstate", k, node, state_width(program, k)) for k, node in enumerate(program.dstate)
    ]
    tasks += [*returning, *states]
    leaves = _FREE | {"dnext"}
    graph = Graph(
        tasks,
        lambda node: node in kept or node.op in leaves,
        {},
        {("dnext", task.index): task for task in states},
        uniform,
    )
    nodes = needs([task.node for task in tasks], graph.given)
    sums = dict(_sums([node for node in nodes if not graph.given(node)]))
    after = {node: [task] for node, task in sums.items()}
    for node in nodes:
        if node.op == "doperand":
            after[node] = [t for t in returning if t.index % count == node.index % count]
    return replace(graph, tasks=[*sums.values(), *tasks], after=after)


def _made_again(program: Program, backward: Graph) -> list[tuple[Node, float]]:
    """Values of the forward that the backward computes, trivial ones apart."""
    of_forward = set(walk(names.forward_results(program)))
    nodes = needs([task.node for task in backward.tasks], backward.given)
    return [
        (node, cost(node))
        for node in nodes
        if node in of_forward and not backward.ready_made(node) and backward.cost(node) > 0.1
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _label(name: str, node: Node, width: Width) -> str:
    line = names.split_source(node.source)[1]
    return f"{name or node.op} ({width}){f', {line}' if line else ''}"
