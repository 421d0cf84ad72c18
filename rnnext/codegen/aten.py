"""How an aten operation on (N, width) becomes nodes, and which are decomposed into others first.

One program serves float32 and float64. Numbers are exact, and whatever torch would compute in
another dtype (of `(z > 0).float()`, or of integers) is computed in the layer's. What would differ
between the two, as limits of a dtype do, or would round to fewer digits, is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnext.codegen.ir import Node
from rnnext.codegen.simplify import Builder

Value = Node | float  # Python's numbers stay as they are


class Refused(Exception):
    """An operation whose arguments cannot be supported; the message says why."""


def _node(make: Builder, value: Value) -> Node:
    return value if isinstance(value, Node) else make.constant(value)


def _number(make: Builder, value: Value) -> Node:
    return make.number(_node(make, value))


def _arithmetic(op: str, logic: str = "") -> Callable[..., Node]:
    """An operation on numbers; where all are booleans, ``logic`` on these if there is one."""

    def handler(make: Builder, *args: Value) -> Node:
        nodes = [_node(make, arg) for arg in args]
        if logic and all(node.boolean for node in nodes):
            return make("not", make("xor", *nodes)) if logic == "equal" else make(logic, *nodes)
        return make(op, *map(make.number, nodes))

    return handler


def _logical(op: str) -> Callable[..., Node]:
    return lambda make, *args: make(op, *(make.boolean(_node(make, arg)) for arg in args))


def _bitwise(op: str) -> Callable[..., Node | None]:
    """Only of booleans."""

    def handler(make: Builder, *args: Value) -> Node | None:
        nodes = [_node(make, arg) for arg in args]
        return make(op, *nodes) if all(node.boolean for node in nodes) else None

    return handler


def _scaled(op: str, logic: str = "") -> Callable[..., Node]:
    plain = _arithmetic(op, logic)

    def handler(make: Builder, a: Value, b: Value, alpha: Value = 1) -> Node:
        return plain(
            make, a, b if alpha == 1 else make("mul", _number(make, b), _node(make, alpha))
        )

    return handler


def _rsub(make: Builder, a: Value, b: Value, alpha: Value = 1) -> Node:
    return _scaled("sub")(make, b, a, alpha)


def _div(make: Builder, a: Value, b: Value, rounding_mode: str | None = None) -> Node | None:
    if rounding_mode == "floor":  # torch is exact, where a / b may be rounded up to an integer
        return None
    quotient = make("div", _number(make, a), _number(make, b))
    return make(rounding_mode, quotient) if rounding_mode else quotient


def _clamp(make: Builder, a: Value, low: Value | None = None, high: Value | None = None) -> Node:
    result = _number(make, a)
    if low is not None:
        result = make("maximum", result, _number(make, low))
    return result if high is None else make("minimum", result, _number(make, high))


def _where(make: Builder, chosen: Value, a: Value, b: Value) -> Node:
    nodes = [_node(make, a), _node(make, b)]
    chosen = make.boolean(_node(make, chosen))
    if all(node.boolean for node in nodes):
        other = make("and", make("not", chosen), nodes[1])
        return make("or", make("and", chosen, nodes[0]), other)
    return make("where", chosen, *map(make.number, nodes))


def _convert(make: Builder, a: Value, dtype: torch.dtype | None = None, **_: object) -> Node:
    node = _node(make, a)
    if dtype is None:
        return node
    if dtype is torch.bool:
        return make.boolean(node)
    if dtype not in (torch.float32, torch.float64, torch.int32, torch.int64):
        raise Refused(f"rounds to {dtype}, but all values have the layer's own dtype: leave it out")
    return make.number(node) if dtype.is_floating_point or node.boolean else make("trunc", node)


# Tensors of one value: which argument it is, or the value itself as a float.
FILLED: dict[str, int | float] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), 0.0),
    **dict.fromkeys(("empty", "empty_like", "new_empty"), 0.0),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0),
    "scalar_tensor": 0,
    "full": 1,
    "full_like": 1,
    "fill": 1,
    "new_full": 2,
}


def _filled(place: int | float) -> Callable[..., Node]:
    def handler(make: Builder, *args: Any, dtype: torch.dtype | None = None, **_: object) -> Node:
        return _convert(make, args[place] if isinstance(place, int) else place, dtype)

    return handler


def _log_in_base(base: float) -> Callable[..., Node]:
    def handler(make: Builder, a: Value) -> Node:
        return make("mul", make("log", _number(make, a)), make.constant(1 / math.log(base)))

    return handler


def _tan(make: Builder, a: Value) -> Node:
    return make("div", make("sin", _number(make, a)), make("cos", _number(make, a)))


def _cosh(make: Builder, a: Value) -> Node:
    size = make("abs", _number(make, a))
    total = make("add", make("exp", size), make("exp", make("neg", size)))
    return make("mul", total, make.constant(0.5))


def _sinh(make: Builder, a: Value) -> Node:
    return make("mul", make("tanh", _number(make, a)), _cosh(make, a))


def _compared(op: str, other: float) -> Callable[..., Node]:
    def handler(make: Builder, a: Value) -> Node:
        return make(op, make("abs", _number(make, a)), make.constant(other))

    return handler


def _nan_to_num(
    make: Builder,
    a: Value,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Node:
    if posinf is None or neginf is None:
        raise Refused(
            "replaces infinities by the dtype's limits, and a step serves both float32 and "
            "float64: give posinf and neginf; for NaN alone, torch.where(z.isnan(), 0, z)"
        )
    node = _number(make, a)
    result = make("where", _is_nan(make, node), make.constant(float(nan or 0)), node)
    for limit, value in ((math.inf, posinf), (-math.inf, neginf)):
        equal = make("eq", node, make.constant(limit))
        result = make("where", equal, make.constant(float(value)), result)
    return result


def _is_nan(make: Builder, a: Value) -> Node:
    return make("ne", _number(make, a), _number(make, a))


_SAME_NAME = (
    "neg abs sqrt rsqrt exp expm1 log log1p sin cos tanh sigmoid erf pow relu floor ceil trunc "
    "sign lt le gt ge"
)
HANDLERS: dict[str, Callable[..., Node | None]] = {
    **{name: _arithmetic(name) for name in _SAME_NAME.split()},
    **{f"logical_{op}": _logical(op) for op in ("and", "or", "xor", "not")},
    **{f"bitwise_{op}": _bitwise(op) for op in ("and", "or", "xor", "not")},
    **{f"__{op}__": _bitwise(op) for op in ("and", "or", "xor")},
    "add": _scaled("add", "or"),
    "sub": _scaled("sub"),
    "rsub": _rsub,
    "mul": _arithmetic("mul", "and"),
    "div": _div,
    "floor_divide": lambda make, a, b: _div(make, a, b, "floor"),
    "minimum": _arithmetic("minimum", "and"),
    "maximum": _arithmetic("maximum", "or"),
    "eq": _arithmetic("eq", "equal"),
    "ne": _arithmetic("ne", "xor"),
    "sgn": _arithmetic("sign"),
    "round": lambda make, a, decimals=0: make("round", _number(make, a)) if not decimals else None,
    "reciprocal": lambda make, a: make("div", make.constant(1.0), _number(make, a)),
    "square": lambda make, a: make("mul", _number(make, a), _number(make, a)),
    "exp2": lambda make, a: make("pow", make.constant(2.0), _number(make, a)),
    "log2": _log_in_base(2.0),
    "log10": _log_in_base(10.0),
    "tan": _tan,
    "cosh": _cosh,
    "sinh": _sinh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda make, a, high: _clamp(make, a, None, high),
    "where": _where,
    "masked_fill": lambda make, a, mask, value: _where(make, mask, value, a),
    "isnan": _is_nan,
    "nan_to_num": _nan_to_num,
    "isinf": _compared("eq", math.inf),
    "isfinite": _compared("lt", math.inf),
    "_to_copy": _convert,
    "convert_element_type": _convert,
    "copy": lambda make, a, source, *_: _node(make, source),
    **{name: _filled(place) for name, place in FILLED.items()},
}

# These only name the same values otherwise, where (N, width) stays as it is.
_RESHAPES = (
    "view _unsafe_view reshape _reshape_alias unsqueeze squeeze expand broadcast_in_dim permute "
    "transpose t alias detach clone lift_fresh lift_fresh_copy view_of slice slice_backward "
    "select select_backward"
)
RESHAPES = frozenset(_RESHAPES.split())


def base_name(target: Any) -> str:
    """``aten.add.Tensor`` is "add", and so is ``aten.add_.Tensor``; others keep their namespace."""
    namespace, name = target._schema.name.split("::")
    if namespace not in ("aten", "prims"):
        return f"{namespace}::{name}"
    return name if name.startswith("__") else name.removesuffix("_")


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of what has no handler, and ours of moments."""
    from torch._decomp import decomposition_table

    kept = {*HANDLERS, *RESHAPES, "sum"}
    table = {
        op: rule
        for op, rule in decomposition_table.items()
        if isinstance(op, torch._ops.OpOverload)
        and op.namespace in ("aten", "prims")
        and base_name(op) not in kept
        and torch.Tag.nondeterministic_seeded not in op.tags
    }
    aten, prims = torch.ops.aten, torch.ops.prims
    table[aten.mean.default] = table[aten.mean.dim] = _mean
    table[aten.var_mean.correction] = _var_mean
    table[aten.var.correction] = lambda *args, **named: _var_mean(*args, **named)[0]
    table[prims.var.default] = lambda x, dim, correction: _var_mean(x, dim, correction=correction)[
        0
    ]
    # Torch's own is of a kind whose products fix the sizes.
    table[aten._efficientzerotensor.default] = lambda size, **named: torch.zeros(size)
    return table


def _count(x: Tensor, dim: Sequence[int]) -> int:
    return math.prod(x.shape[axis] for axis in dim)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dim = dim or list(range(x.dim()))
    return x.sum(dim, keepdim) / _count(x, dim)


def _var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dim = dim or list(range(x.dim()))
    mean = _mean(x, dim, True)
    total = ((x - mean) * (x - mean)).sum(dim, keepdim)
    var = total / (_count(x, dim) - (1 if correction is None else correction))
    return var, mean if keepdim else _mean(x, dim)
