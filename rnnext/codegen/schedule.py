"""Stages of a step: which results are made when, and what one stage hands to later ones.

A stage treats each unit of one width by itself. What needs all units of a row (totals, values of
width one), all rows of a unit (sums over the batch) or the engine (products) separates stages.
There are as few as possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from rnnext.codegen.ir import Node, Width

_TRANSCENDENTAL = frozenset(
    {"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow"}
)
_SLOW = frozenset({"div", "sqrt", "rsqrt"})

AGAIN = 0.1
"""Up to this cost a value is made again in a later stage, which is cheaper than handing it over."""

INLINE = 0.2
"""Up to this cost a value of width one is made wherever it is used, without a stage of its own."""


def cost(node: Node) -> float:
    """What computing a node costs, its arguments apart, in units of one value kept in memory."""
    if node.op in _TRANSCENDENTAL:
        return 0.4
    if node.op == "sum":
        return 0.5
    return 0.15 if node.op in _SLOW else 0.03


@dataclass(frozen=True, eq=False)
class Task:
    """A call that a stage makes: `u.<call>(index, node)`.

    `put` is the operand of product `index`, `add` the argument of a sum, `add_batch` that of sum
    `index` over the batch. `hand` is no call: its value of width one is made in this stage, and put
    if a later one reads it.
    """

    call: str
    index: int
    node: Node
    width: Width


Widths: TypeAlias = list[tuple[Width, list[Task]]]
"""Stages by their width and tasks."""


@dataclass(frozen=True)
class Graph:
    """What there is to schedule, forward or backward.

    Attributes:
        tasks: all calls to be made.
        given: whether a node can be read in any stage.
        after: sums, and what products return: readable after the stages of these tasks.
        overwrites: the task whose stage is the last that can read a leaf (its op and index).
        uniform: what a stage computes once for all rows.
    """

    tasks: list[Task]
    given: Callable[[Node], bool]
    after: Mapping[Node, list[Task]]
    overwrites: Mapping[tuple[str, int], Task]
    uniform: frozenset[Node] = frozenset()

    def cost(self, node: Node) -> float:
        """What computing a node costs for each row."""
        return 0.0 if node in self.uniform else cost(node)

    def ready_made(self, node: Node) -> bool:
        """Whether a node is read, not computed."""
        return self.given(node) or node in self.after


@dataclass
class Stage:
    """Units of one width: the calls in their order, and what earlier stages hand over."""

    width: Width
    tasks: list[Task] = field(default_factory=list)
    reads: set[Node] = field(default_factory=set)  # with u.value
    puts: list[tuple[Node, Width]] = field(default_factory=list)
    leaves: set[tuple[str, int]] = field(default_factory=set)
    cost: float = 0.0


@dataclass
class Schedule:
    """Stages in their order; `slots` numbers the values between them, `totals` the sums."""

    stages: list[Stage]
    slots: dict[tuple[Node, Width], int]
    totals: dict[Node, int]

    def stage_of(self, task: Task) -> int:
        """The stage that makes a call."""
        return next(i for i, stage in enumerate(self.stages) if task in stage.tasks)


_Done: TypeAlias = tuple[frozenset[Node], frozenset[Task]]


def needs(roots: Iterable[Node], stop: Callable[[Node], bool]) -> list[Node]:
    """The nodes to read or compute for these, arguments first, none behind one where to stop."""
    done: dict[Node, None] = {}
    stack = list(roots)[::-1]
    while stack:
        node = stack[-1]
        waiting = [] if stop(node) else [arg for arg in node.args if arg not in done]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            done.setdefault(stack.pop())
    return list(done)


def schedule(graph: Graph) -> Schedule:
    """Order the tasks of a graph in as few stages as possible, with little handed between them.

    Raises:
        ValueError: a value needs units of another width than its own.
    """
    nodes = needs([task.node for task in graph.tasks], graph.given)
    inline = _inline(graph, nodes)
    apart = [n for n in nodes if n.width == 1 and n not in inline and not graph.ready_made(n)]
    graph = replace(graph, tasks=[*graph.tasks, *(Task("hand", 0, node, 1) for node in apart)])
    plan = _keep_old_values(graph, inline, _fewest_stages(graph, nodes, inline))
    stages = _improve(graph, inline, plan)
    slots: dict[tuple[Node, Width], int] = {}
    totals: dict[Node, int] = {}
    sums = {tasks[0]: node for node, tasks in graph.after.items() if node.op == "sum"}
    for stage in stages:
        for put in stage.puts:
            slots[put] = len(slots)
        for task in stage.tasks:
            if task in sums:
                totals[sums[task]] = len(totals)
    return Schedule(stages, slots, totals)


def _inline(graph: Graph, nodes: list[Node]) -> set[Node]:
    """Values of width one that are cheap enough to be made in a stage of any width."""
    chain: dict[Node, float] = {}
    for node in nodes:
        if node.width != 1 or graph.ready_made(node):
            continue
        price = graph.cost(node) + sum(chain.get(arg, 0.0) for arg in set(node.args))
        if price <= INLINE:
            chain[node] = price
    return set(chain)


def _fewest_stages(graph: Graph, nodes: list[Node], inline: set[Node]) -> Widths:
    """The shortest sequence of widths in which everything can be made, each as early as it can."""
    frontier: dict[_Done, Widths] = {(frozenset(), frozenset()): []}
    widths = list(dict.fromkeys(task.width for task in graph.tasks))
    while not any(len(tasks) == len(graph.tasks) for _, tasks in frontier):
        following: dict[_Done, Widths] = {}
        for (made, finished), path in frontier.items():
            for width in widths:
                now = _reachable(graph, nodes, inline, made, finished, width)
                new = [
                    task
                    for task in graph.tasks
                    if task not in finished and task.width == width and task.node in now
                ]
                kept = {n for n in now if n.width == width and not graph.ready_made(n)}
                state = (made | kept, finished | set(new))
                if state != (made, finished):
                    following.setdefault(state, [*path, (width, new)])
        # A state with less done than another of the same length leads nowhere sooner.
        frontier = {
            state: path
            for state, path in following.items()
            if not any(
                state is not other and state[0] <= other[0] and state[1] <= other[1]
                for other in following
            )
        }
        if not frontier:
            raise ValueError(
                "no order of stages computes this step: a value depends on one of another width"
            )
    return next(path for (_, tasks), path in frontier.items() if len(tasks) == len(graph.tasks))


def _reachable(
    graph: Graph,
    nodes: list[Node],
    inline: set[Node],
    made: frozenset[Node],
    finished: frozenset[Task],
    width: Width,
) -> set[Node]:
    """The nodes that a stage can read or compute after the tasks finished so far."""
    now: set[Node] = set()
    for node in nodes:
        if node.width not in (width, 1):
            continue
        if node in graph.after:
            possible = all(task in finished for task in graph.after[node])
        elif graph.given(node) or node in made:
            possible = True
        else:
            here = node.width == width or node in inline
            possible = here and all(arg in now for arg in node.args)
        if possible:
            now.add(node)
    return now


def _detail(graph: Graph, inline: set[Node], plan: Widths) -> list[Stage]:
    """Go through the stages: what each computes, and what it had better get from earlier ones."""
    first = _Walk(graph, inline, plan, frozenset())
    return _Walk(graph, inline, plan, frozenset(node for node, _ in first.handed)).stages


class _Walk:
    """One way through the stages, `known` being what is probably handed on in any case."""

    def __init__(
        self,
        graph: Graph,
        inline: set[Node],
        plan: Widths,
        known: frozenset[Node],
    ) -> None:
        self.graph = graph
        self.inline = inline
        self.known = known
        self.stages = [Stage(width, tasks) for width, tasks in plan]
        self.made: dict[Node, int] = {}  # the stage that computes a node first
        self.handed: dict[tuple[Node, Width], int] = {}  # the stage that puts a value
        written = {task: i for i, stage in enumerate(self.stages) for task in stage.tasks}
        self.last_read = {leaf: written[task] for leaf, task in graph.overwrites.items()}
        for number in range(len(self.stages)):
            self.visit(number)

    def visit(self, number: int) -> None:
        """Read or compute what the tasks of a stage need."""
        stage, here = self.stages[number], set[Node]()
        stack = [task.node for task in reversed(stage.tasks)]
        while stack:
            node = stack.pop()
            if node in here:
                continue
            if node in self.made and self.again(node, number, here, AGAIN, root=True) > AGAIN:
                self.put(node, node.width, self.made[node])
                stage.reads.add(node)
                stage.cost += 0.3 if node.width != 1 else 0.01
            elif self.graph.ready_made(node):
                stage.leaves.add((node.op, node.index))
            else:
                elsewhere = node.width != stage.width and node not in self.inline
                stage.cost += math.inf if elsewhere else self.graph.cost(node)
                if node.width == stage.width:
                    self.made.setdefault(node, number)
                stack.extend(reversed(node.args))
            here.add(node)
        for task in stage.tasks:
            if task.call == "put":
                same = task.width == task.node.width
                first = self.made.get(task.node, number) if same else number
                self.put(task.node, task.width, first)

    def put(self, node: Node, width: Width, number: int) -> None:
        """Hand a value on from a stage, once."""
        if (node, width) not in self.handed:
            self.handed[node, width] = number
            self.stages[number].puts.append((node, width))
            self.stages[number].cost += 1.0 if width != 1 else 0.05

    def again(
        self, node: Node, number: int, here: set[Node], limit: float, root: bool = False
    ) -> float:
        """The cost of making a node again in a stage, infinite above the limit.

        The root is what the question is about; what it needs can be handed on itself.
        """
        stage = self.stages[number]
        handed = (node, node.width) in self.handed
        if root and handed:
            return math.inf
        if not root and (handed or node in here or node in self.known):
            return 0.0
        if self.graph.ready_made(node):
            gone = number > self.last_read.get((node.op, node.index), number)
            return math.inf if gone else 0.0
        if node.width != stage.width and node not in self.inline:
            return math.inf if root or node.width != 1 else 0.0
        price = self.graph.cost(node)
        for arg in node.args:
            price += self.again(arg, number, here, limit - price) if price <= limit else math.inf
        return price if price <= limit else math.inf


def _overwritten(graph: Graph, stages: list[Stage]) -> list[tuple[Task, int, int]]:
    """Tasks that overwrite what a later stage reads: with their stage and that later one."""
    found = []
    for leaf, task in graph.overwrites.items():
        readers = [i for i, stage in enumerate(stages) if leaf in stage.leaves]
        writer = next(i for i, stage in enumerate(stages) if task in stage.tasks)
        if readers and readers[-1] > writer:
            found.append((task, writer, readers[-1]))
    return found


def _keep_old_values(graph: Graph, inline: set[Node], plan: Widths) -> Widths:
    """Put writes off until the last stage that reads what they overwrite."""
    while late := _overwritten(graph, _detail(graph, inline, plan)):
        task, writer, reader = late[0]
        plan[writer][1].remove(task)
        for width, tasks in plan[reader:]:
            if width == task.width:
                tasks.append(task)
                break
        else:
            plan.append((task.width, [task]))
    return plan


def _improve(graph: Graph, inline: set[Node], plan: Widths) -> list[Stage]:
    """Move calls to later stages where that saves handing values over."""
    best = _detail(graph, inline, plan)
    waited_for = {task for tasks in graph.after.values() for task in tasks}
    for task in graph.tasks:
        if task in waited_for:
            continue
        start = next(i for i, stage in enumerate(best) if task in stage.tasks)
        for target in range(start + 1, len(best)):
            if best[target].width != task.width:
                continue
            moved = [
                (
                    stage.width,
                    [t for t in stage.tasks if t is not task] + [task] * (number == target),
                )
                for number, stage in enumerate(best)
            ]
            trial = _detail(graph, inline, moved)
            cheaper = sum(s.cost for s in trial) < sum(s.cost for s in best) - 1e-9
            if cheaper and not _overwritten(graph, trial):
                best = trial
    return best
