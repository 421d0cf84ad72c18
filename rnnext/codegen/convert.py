"""Turn a traced graph of aten operations on (N, width) into nodes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from rnnext.codegen.aten import FILLED, HANDLERS, RESHAPES, Refused, base_name
from rnnext.codegen.errors import call_name, cell_error, node_error, spelling, unsupported
from rnnext.codegen.ir import Node, Width, walk, with_gradient
from rnnext.codegen.record import Recording
from rnnext.codegen.simplify import Builder
from rnnext.codegen.sums import Sums

_ROWS = "N"
_MEASURES = (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default)
_MIXED = (
    "is not supported in a step with sums over the batch: these are of values (N, width), and "
    "there are no sums over the units of a row, nor of one value a row, beside them"
)
_SIZE_OPS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    torch.sym_max: "maximum",
    torch.sym_min: "minimum",
    torch.sym_sqrt: "sqrt",
}


@dataclass(frozen=True)
class Leaf:
    """What a placeholder of the traced graph stands for."""

    op: str  # as of nodes; "ruler": only there to be measured
    index: int
    width: Width
    name: str = ""  # of the step's argument
    stream: int = 0


Result = tuple[str, int]  # what an output of the traced graph is: ("next", 0), ("operand", 1), ...


class Converter:
    """Makes a node of each operation, when it is first needed.

    Axes are told apart by their symbolic sizes. Without axes of size 1, a value is (N, width),
    (N,), (width,) or a scalar, and all of these are a node: one value a row is of width 1, and
    what is the same for all rows is simply repeated. Hence the gradient of such a value, in torch
    a sum over N, is one row's share of it here, and sums over N (they occur in the backward only,
    which is linear in them) do nothing.

    In a cell with sums over the batch a sum over N is what it is, and of the gradients of params
    the rows' shares are found in the end.

    Args:
        recording: the step.
        leaves: what the placeholders stand for.
        graph: what was traced.
        keep_detach: whether a value that was detached is a node of its own.
        batched: whether the cell has sums over the batch; else whether the graph says so.
    """

    def __init__(
        self,
        recording: Recording,
        leaves: Sequence[Leaf],
        graph: fx.Graph,
        keep_detach: bool,
        batched: bool = False,
    ) -> None:
        self.recording = recording
        self.keep_detach = keep_detach
        self.make = Builder()
        self.graph = graph
        self.nodes: dict[fx.Node, Node] = {}
        self.operands: dict[int, fx.Node | None] = {}  # None: of a tangent, where none flows
        self.axes: dict[object, Width] = {}
        self.sizes: dict[Width, Node] = {}
        self.detached: Collection[int] = ()
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.leaves = dict(zip(placeholders, leaves, strict=True))
        for node, leaf in self.leaves.items():
            if leaf.op != "ruler":
                continue
            rows, units = map(_symbol, node.meta["val"].shape)
            self.axes |= {rows: _ROWS, units: leaf.width}
            self.sizes[leaf.width] = self.make.leaf("size", leaf.index)
        self.batched = batched or any(map(self._adds_rows, graph.nodes))
        if self.batched:
            self.sizes[_ROWS] = self.make.leaf("batch", 0)

    def run(self, results: Sequence[Result], detached: Collection[int] = ()) -> dict[Result, Node]:
        """The node of each result, a constant 0 where there is none.

        Args:
            results: what the outputs of the graph are.
            detached: products to whose operands no gradient flows back.
        """
        self.detached = detached
        outputs = dict(zip(results, list(self.graph.nodes)[-1].args[0], strict=True))
        self.operands = {i: node for (kind, i), node in outputs.items() if kind == "operand"}
        zero = self.make.constant(0.0)
        made = {
            result: zero if output is None else self._result(result, self._convert(output))
            for result, output in outputs.items()
        }
        if not self.batched:
            sums = Sums(self.make, made.values(), self.sizes.__getitem__)
            return {result: sums(node) for result, node in made.items()}
        made |= {key: self._share(node) for key, node in made.items() if key[0] == "dparam"}
        sums = Sums(self.make, made.values(), lambda width: self.sizes[_ROWS], batch=True)
        return self._numbered({result: sums(node) for result, node in made.items()})

    def _result(self, result: Result, made: Node) -> Node:
        if result[0] == "operand":
            return self._of_product(made, result[1])
        return self.make.number(made)

    def _of_product(self, operand: Node, index: int) -> Node:
        """An operand; of a state that was detached not the state itself, to which the engine
        would send its gradient."""
        detached = operand.op == "state" and index in self.detached
        return self.make.detach(operand) if detached else self.make.number(operand)

    def _convert(self, root: fx.Node) -> Node:
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [need for need in self._needs(node) if need not in self.nodes]
            if waiting and node not in self.nodes:
                stack += reversed(waiting)
                continue
            stack.pop()
            if node not in self.nodes:
                self.make.source = node.meta.get("source", "")
                self.make.backward = "source" not in node.meta
                self.nodes[node] = self._made(node)
        return self.nodes[root]

    def _needs(self, node: fx.Node) -> list[fx.Node]:
        leaf = self.leaves.get(node)
        if leaf is None:
            return list(_arguments(node))
        return [node for _, node in self._operands(leaf) if node is not None]

    def _operands(self, leaf: Leaf) -> list[tuple[int, fx.Node | None]]:
        """What a product's result or operand's gradient depends on, by number: operands."""
        if leaf.op not in ("product", "doperand"):
            return []
        both = leaf.op == "product" and leaf.stream == 1
        first = [leaf.index - len(self.recording.products)] if both else []
        return [(index, self.operands[index]) for index in (*first, leaf.index)]

    def _made(self, node: fx.Node) -> Node:
        leaf = self.leaves.get(node)
        if leaf is not None:
            return self._leaf(node, leaf)
        if node.op == "get_attr":
            return self._constant(node)
        if not isinstance(node.meta.get("val"), Tensor):
            return self._size(node)
        name, layout = base_name(node.target), self._layout(node)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            self._fail(node, "draws random numbers: declare them in `noise`")
        if node.meta["val"].is_complex():
            self._fail(node, "makes complex numbers: a step has real ones")
        if layout is None:
            self._unsupported(node, shaped=True)
        made: Node | None
        if name in RESHAPES:
            made = self._reshaped(node, layout)
        elif name == "sum":
            made = self._sum(node, *node.args[1:2])
        elif name in HANDLERS:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._known)
            try:
                made = HANDLERS[name](self.make, *args, **kwargs)
            except Refused as refused:
                self._fail(node, str(refused))
        else:
            made = None
        if made is None:
            self._unsupported(node)
        is_boolean = node.meta["val"].dtype is torch.bool
        return self.make.boolean(made) if is_boolean else self.make.number(made)

    def _known(self, arg: fx.Node) -> Any:
        return self.nodes.get(arg, arg)

    def _leaf(self, node: fx.Node, leaf: Leaf) -> Node:
        if leaf.op == "product":
            args = tuple(
                self.make.constant(0.0) if made is None else self._of_product(self.nodes[made], p)
                for p, made in self._operands(leaf)
            )
            return self.make.product(args, leaf.index, leaf.width)
        if leaf.op == "doperand" and any(self.nodes[n].op == "state" for n in self._needs(node)):
            return self.make.constant(0.0)  # the engine adds this gradient, if it flows
        return self.make.leaf(leaf.op, leaf.index, leaf.width)

    def _constant(self, node: fx.Node) -> Node:
        value = getattr(self.graph.owning_module, str(node.target))
        if not isinstance(value, Tensor) or value.numel() != 1:
            self._unsupported(node)
        return self.make.constant(value.item())

    def _size(self, node: fx.Node) -> Node:
        if node.target in _MEASURES:
            axes = self._axes_of(node.args[0])
            axes = axes if len(node.args) == 1 else [axes[node.args[1]]]  # type: ignore[index]
            if not set(axes) <= {1, *self.sizes}:
                self._fail(node, "uses the number of rows as a value: a step is the same for any")
            count = self.make.constant(1.0)
            for axis in axes:
                count = count if axis == 1 else self.make("mul", count, self.sizes[axis])  # type: ignore[index]
            return count
        args = [
            self.nodes[arg] if isinstance(arg, fx.Node) else self.make.constant(arg)  # type: ignore[arg-type]
            for arg in node.args
        ]
        if node.target is torch.sym_float:
            return args[0]
        if node.target is operator.floordiv:
            return self.make("floor", self.make("div", *args))
        if node.target not in _SIZE_OPS:
            self._unsupported(node)
        return self.make(_SIZE_OPS[node.target], *args)

    def _axes_of(self, node: Any) -> list[Width | None]:
        shape = map(_symbol, node.meta["val"].shape)
        return [1 if size == 1 else self.axes.get(size) for size in shape]

    def _layout(self, node: Any) -> tuple[Width | None, ...] | None:
        """The axes apart from those of size 1, None if these are no rows of units."""
        layout = tuple(axis for axis in self._axes_of(node) if axis != 1)
        units = layout[1:] if layout[:1] == (_ROWS,) else layout
        return layout if len(units) <= 1 and not {None, _ROWS} & set(units) else None

    def _reshaped(self, node: fx.Node, layout: tuple[Width | None, ...]) -> Node | None:
        source = self._layout(node.args[0])
        grows = base_name(node.target) in ("expand", "broadcast_in_dim")
        if source is None or not (set(source) <= set(layout) if grows else source == layout):
            return None
        made = self.nodes[node.args[0]]  # type: ignore[index]
        call = node.meta.get("call")
        if self.keep_detach and call is not None and call_name(call) in ("detach", "data"):
            return made if made.op == "constant" else self.make.detach(made)
        return made

    def _sum(self, node: fx.Node, dims: Any = None) -> Node:
        axes = self._axes_of(node.args[0])
        made = self.make.number(self.nodes[node.args[0]])  # type: ignore[index]
        for axis in (axes[dim] for dim in dims or range(len(axes))):
            if axis == _ROWS and self.batched:
                made = self.make.batch_sum(made, self.sizes[axis])
            elif axis not in (1, _ROWS):
                made = self.make.sum(made, self.sizes[axis])  # type: ignore[index]
            if self.batched and made.op in ("sum", "batch_sum") and made.width == 1:
                self._fail(node, _MIXED)
        return made

    def _adds_rows(self, node: fx.Node) -> bool:
        """Whether the step itself adds up rows there."""
        if not isinstance(node.target, torch._ops.OpOverload) or "source" not in node.meta:
            return False
        if base_name(node.target) != "sum":
            return False
        axes = self._axes_of(node.args[0])
        dims: Any = node.args[1] if len(node.args) > 1 else None
        return _ROWS in [axes[dim] for dim in dims or range(len(axes))]

    def _share(self, gradient: Node) -> Node:
        """One row's share of a gradient that adds up rows, in which it is linear."""
        shares: dict[Node, Node] = {}
        self.make.source, self.make.backward = "", True
        for node in with_gradient([gradient]):
            if node.op == "batch_sum":
                shares[node] = node.args[0]
            elif node in self.make.uniform:
                shares[node] = self.make(node.op, *(shares.get(arg, arg) for arg in node.args))
        return shares.get(gradient, gradient)

    def _numbered(self, results: dict[Result, Node]) -> dict[Result, Node]:
        """The same, with sums over the batch numbered: the step's in the order of its calls."""
        nodes, gradients = list(walk(results.values())), with_gradient(results.values())
        forward = set(walk(results[key] for key in results if key[0] in ("next", "operand")))
        calls = dict.fromkeys(self.nodes[node] for node in self.graph.nodes if node in self.nodes)
        places = {node: place for place, node in enumerate(dict.fromkeys([*calls, *nodes]))}
        sums = [node for node in nodes if node.op == "batch_sum"]
        own = [node for node in sums if node not in gradients]
        if not own and any(node.op == "batch" for node in nodes):
            problem = "its step adds up over the batch only what is the same in all rows"
            raise cell_error(self.recording.declaration, problem)
        own.sort(key=lambda node: (node not in forward, places[node]))
        back = [node for node in sums if node in gradients]
        numbers = {node: ("batch_sum", k) for k, node in enumerate(own)}
        numbers |= {node: ("back_batch_sum", k) for k, node in enumerate(back)}
        new: dict[Node, Node] = {}
        for node in nodes:
            args = tuple(new[arg] for arg in node.args)
            op, index = numbers.get(node, (node.op, node.index))
            same = args == node.args and node not in numbers
            new[node] = node if same else replace(node, op=op, args=args, index=index)
        return {key: new[node] for key, node in results.items()}

    def _fail(self, node: fx.Node, problem: str) -> NoReturn:
        call = node.meta.get("call")
        name = spelling(call) if call is not None else f"the derivative ({node.target})"
        raise node_error(self.recording.declaration, f"{name} {problem}", call)

    def _unsupported(self, node: fx.Node, shaped: bool = False) -> NoReturn:
        call = node.meta.get("call")
        names = [call_name(call)] if call is not None else []
        if isinstance(node.target, torch._ops.OpOverload):
            names.append(base_name(node.target))
        self._fail(node, unsupported(*names, shaped=shaped))


def _arguments(node: fx.Node) -> Sequence[fx.Node]:
    """The arguments whose values count: not those that only say a shape."""
    if node.target in _MEASURES:
        return ()
    if isinstance(node.target, torch._ops.OpOverload):
        name = base_name(node.target)
        if name in FILLED:
            place = FILLED[name]
            value = node.args[place] if isinstance(place, int) else None
            return [value] if isinstance(value, fx.Node) else []
        if name in RESHAPES or name == "sum":
            return node.all_input_nodes[:1]
    return node.all_input_nodes


def _symbol(size: int | torch.SymInt) -> object:
    return size.node.expr if isinstance(size, torch.SymInt) else size
