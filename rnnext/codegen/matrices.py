"""Find the products with declared matrices in a recorded step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from rnnext.codegen.errors import (
    REFUSED,
    call_name,
    cell_error,
    node_error,
    spelling,
    unsupported,
)

if TYPE_CHECKING:
    from rnnext.cell import Declaration

_TRANSPOSES = frozenset({"t", "T", "mT", "transpose", "swapaxes", "swapdims", "permute", "adjoint"})


def product(value: Tensor, matrix: int) -> Tensor:
    """Stands in a recorded graph for ``value @ matrix.T``."""
    raise NotImplementedError


def find_products(declaration: Declaration, graph: fx.Graph) -> tuple[int, ...]:
    """Put `product` nodes in place of all that is done with the declared matrices."""
    placeholders = {node.target: node for node in graph.nodes if node.op == "placeholder"}
    names = list(declaration.matrices)
    matrices = {placeholders[name]: name for name in names}
    transposed: dict[fx.Node, str] = {}
    found = []
    for node in list(graph.nodes):
        used = [arg for arg in node.all_input_nodes if arg in matrices or arg in transposed]
        if not used and call_name(node) in REFUSED and node.op != "placeholder":
            problem = f"{spelling(node)} {unsupported(call_name(node))}"
            raise node_error(declaration, problem, node)
        if not used:
            continue
        name = matrices.get(used[0]) or transposed[used[0]]
        kind, args = call_name(node), _by_position(node)
        axes = args[2:] if node.target is getattr else args[1:]
        if kind in _TRANSPOSES and used[0] in matrices and _swaps(axes):
            transposed[node] = name
            continue
        weight = matrices if kind == "linear" else transposed
        if (
            kind not in ("linear", "matmul", "mm", "__matmul__")
            or len(args) < 2
            or args[1] is not used[0]
            or used[0] not in weight
            or any(arg in used for arg in (args[0], *args[2:]))
        ):
            problem = (
                f"matrix {name!r} may only be used as torch.nn.functional.linear(value, {name}) "
                f"or value @ {name}.T"
            )
            raise node_error(declaration, problem, node)
        found.append(names.index(name))
        with graph.inserting_before(node):
            result = graph.call_function(product, (args[0], names.index(name)))
            result.meta["line"] = node.meta["line"]
            if kind == "linear" and len(args) > 2 and args[2] is not None:
                result = graph.call_function(operator.add, (result, args[2]))
                result.meta["line"] = node.meta["line"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    for index, name in enumerate(names):
        if index not in found:
            raise cell_error(declaration, f"matrix {name!r} is never used in a product")
    return tuple(found)


def _by_position(node: fx.Node) -> list[Any]:
    names = ("input", "weight", "bias") if "weight" in node.kwargs else ("input", "other", "mat2")
    return [*node.args, *(node.kwargs[name] for name in names if name in node.kwargs)]


def _swaps(axes: Sequence[Any]) -> bool:
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return not flat or (sorted(axis % 2 for axis in flat) == [0, 1] and len(set(flat)) == 2)
