"""Record a cell's step as a graph of torch calls: quick, and what is wrong in it is said here.

The step is run once with proxies in place of tensors, so helper functions and Python control flow
on constants are simply gone from the graph, and its text is a key for the compiled cell.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rnnext.codegen.errors import (
    CellError,
    Line,
    cell_error,
    node_error,
    qualified,
    spelling,
)
from rnnext.codegen.ir import Width
from rnnext.codegen.matrices import find_products, product

if TYPE_CHECKING:
    from rnnext.cell import Declaration

_RANDOM = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        *("bernoulli", "normal", "poisson", "multinomial", "binomial", "rrelu", "gumbel_softmax"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "native_dropout", "alpha_dropout"),
        *("feature_dropout", "feature_alpha_dropout"),
    }
)
_TO_PYTHON = frozenset({"item", "tolist", "numpy", "__array__", "is_nonzero", "equal", "allclose"})
_CONTROL = "use torch.where for a choice between values, or declare what is fixed in `constants`"


@dataclass(frozen=True)
class Input:
    """What a step may take as an argument."""

    name: str
    op: str  # the leaf of the graph, or "matrix"
    index: int
    width: Width


@dataclass(frozen=True)
class Recording:
    """A step as a graph of torch calls; ``text`` says all of it, but where it was written."""

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


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Stands in a recorded graph for a tensor of one value from outside."""
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def rms_norm(
    input: Tensor, normalized_shape: object, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """torch's, with the default of float32 for ``eps``."""
    mean = (input * input).mean(-1, keepdim=True)
    result = input * torch.rsqrt(mean + (torch.finfo(torch.float32).eps if eps is None else eps))
    return result if weight is None else result * weight


def record(declaration: Declaration) -> Recording:
    """Run a step with proxies and check what it does and returns.

    Raises:
        CellError: the step does what cannot be compiled, or returns something else than its
            states; the message gives the line.
    """
    tracer = _Tracer(declaration)
    values: dict[str, object] = dict(declaration.constants)
    for given in inputs(declaration):
        values[given.name] = tracer.create_proxy("placeholder", given.name, (), {})
    dice = random.getstate()
    try:
        with _Watch(tracer):
            returned = declaration.step(**{name: values[name] for name in declaration.arguments})
    except CellError:
        raise
    except Exception as error:
        line = Line.of_error(error)
        problem = f"its step raised {type(error).__name__} while it was recorded: {error}"
        raise cell_error(declaration, problem, line) from error
    if random.getstate() != dice:
        raise cell_error(declaration, "its step draws random numbers: declare them in `noise`")
    tracer.create_node("output", "output", (_checked(declaration, returned),), {})
    products = find_products(declaration, tracer.graph)
    tracer.graph.eliminate_dead_code()
    recording = Recording(declaration, tracer.graph, _text(tracer.graph), products)
    _check_shapes(recording)
    return recording


def replay(
    recording: Recording,
    values: Mapping[str, object],
    product_of: Callable[[Any, int], Any],
    before: Callable[[fx.Node], None] = lambda node: None,
    after: Callable[[fx.Node], None] = lambda node: None,
) -> tuple[Any, ...]:
    """Run a recorded graph; ``product_of(value, p)`` makes the products, in their order."""
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
            elif node.op == "call_method":
                known[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            elif node.target is product:
                known[node] = product_of(args[0], count)
                count += 1
            else:
                known[node] = node.target(*args, **kwargs)
        except CellError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            problem = f"{spelling(node)} cannot be compiled: {reason}"
            raise node_error(recording.declaration, problem, node) from error
        after(node)
    raise AssertionError("a recorded graph ends with its output")


class _Tracer(fx.Tracer):
    def __init__(self, declaration: Declaration) -> None:
        super().__init__()
        self.graph = fx.Graph(tracer_cls=_Tracer)
        self.root = torch.nn.Module()
        self.declaration = declaration

    def fail(self, problem: str, line: Line | None = None) -> NoReturn:
        raise cell_error(self.declaration, problem, line or Line.of_caller())

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any) -> fx.Node:
        if kind in ("call_function", "call_method"):
            self._check_call(target, args, kwargs)
            target = _SAME.get(target, target)
        node = super().create_node(kind, target, args, kwargs, *rest)
        if kind not in ("placeholder", "output"):
            node.meta["line"] = Line.of_caller()
        return node

    def _check_call(self, target: Any, args: Any, kwargs: Any) -> None:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        in_place = "writes in place, and a step is a pure function: make a new value, "
        if target in _IN_PLACE:
            sign = _IN_PLACE[target]
            self.fail(f"`{sign}=` {in_place}write h = h {sign} x in place of h {sign}= x")
        if name.endswith("_") and not name.endswith("__") and target not in _OPERATORS:
            self.fail(f"{name} {in_place}with {name[:-1]}")
        if kwargs.get("out") is not None:
            self.fail(f"{name} with out= {in_place}as in h = torch.{name}(...)")
        if kwargs.get("inplace") or _positional(target, args, "inplace"):
            self.fail(f"{name} with inplace=True {in_place}without inplace")
        if name in _TO_PYTHON:
            self.fail(f"{name} makes a Python value of data, which is only known later: {_CONTROL}")
        if name in _RANDOM and kwargs.get("training") is not False:
            self.fail(f"{name} draws random numbers: declare them in `noise`")

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            if a.dim() == 0 and not a.requires_grad and not a.is_complex():
                return self.create_node("call_function", scalar, (a.item(), a.dtype), {})
            self.fail(
                f"its step uses a tensor of shape {tuple(a.shape)} from outside, which is not an "
                "argument: declare it in `params` (or in `matrices`) and take it by its name"
            )
        if type(a).__module__ == "numpy":
            if getattr(a, "ndim", 1) == 0:
                return a.item()
            self.fail(f"its step uses {type(a).__name__} from NumPy: declare it in `params`")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.fail(f"Python control flow (if, while, and, or, not) on data: {_CONTROL}")

    def iter(self, obj: fx.Proxy) -> NoReturn:
        self.fail("a loop over a tensor or a size: a step works on all rows at once, without loops")


class _Proxy(fx.Proxy):
    """Stands for a tensor or a size."""

    __array_ufunc__ = None  # NumPy's arrays leave an operation to this class

    tracer: _Tracer

    def _fail_to_python(self, kind: str) -> NoReturn:
        hint = "; of a size, write hidden_size ** 0.5 in place of math.sqrt(hidden_size)"
        self.tracer.fail(f"{kind} of what is only known later: {_CONTROL}{hint}")

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __float__(self) -> float:
        self._fail_to_python("float()")

    def __int__(self) -> int:
        self._fail_to_python("int()")

    def __index__(self) -> int:
        self._fail_to_python("an index or a range()")

    def __len__(self) -> int:
        self._fail_to_python("len()")

    def __contains__(self, item: object) -> bool:
        self._fail_to_python("`in`")

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.fail("an assignment to h[...] writes in place: use torch.where")


class _Attribute(fx.proxy.Attribute, _Proxy):
    """``h.T``, or ``h.sigmoid`` before it is called: recorded when it is used."""

    def __init__(self, root: _Proxy, name: str) -> None:
        super().__init__(root, name)
        self.line = Line.of_caller()

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        node = super().node
        node.meta["line"] = self.line
        return node


# Of real numbers sgn is sign, but its derivative fixes the sizes; rms_norm rounds its eps.
_SAME = {torch.sgn: torch.sign, "sgn": "sign", torch.rms_norm: rms_norm, F.rms_norm: rms_norm}
_OPERATORS = (operator.and_, operator.or_, operator.not_)  # which write nowhere
_IN_PLACE = {
    getattr(operator, name): sign
    for name, sign in {
        "iadd": "+", "isub": "-", "imul": "*", "itruediv": "/", "ipow": "**", "ifloordiv": "//",
        "imod": "%", "iand": "&", "ior": "|", "ixor": "^", "imatmul": "@",
    }.items()
}  # fmt: skip


def _in_place(target: Callable[..., object]) -> Callable[..., object]:
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _target in _IN_PLACE:
    setattr(_Proxy, f"__{_target.__name__}__", _in_place(_target))


class _Watch(TorchFunctionMode):
    """Finds random numbers that are drawn without a tensor among the arguments."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "torch")
        if name == "_set_grad_enabled":  # not called, since nothing would set it back
            self.tracer.fail("torch.no_grad and enable_grad have no effect: use value.detach()")
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        drawn = name in _RANDOM and isinstance(result, Tensor)
        if drawn or not torch.equal(before, torch.get_rng_state()):
            self.tracer.fail(f"{name} draws random numbers: declare them in `noise`")
        return result


def _positional(target: Any, args: Sequence[object], name: str) -> bool:
    code = getattr(target, "__code__", None)
    if not isinstance(code, CodeType) or name not in code.co_varnames[: code.co_argcount]:
        return False
    place = code.co_varnames.index(name)
    return place < len(args) and args[place] is True


def _checked(declaration: Declaration, returned: object) -> tuple[fx.Node, ...]:
    names = ", ".join(declaration.states)
    wanted = f"the new states ({names}), {len(declaration.states)} in all, in this order"
    given = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    if len(given) == 1 and given[0] is None:
        problem = f"its step returns nothing: return {wanted}"
    elif len(given) != len(declaration.states):
        problem = f"its step returns {len(given)} values: return {wanted}"
    else:
        for name, value in zip(declaration.states, given, strict=True):
            if not isinstance(value, fx.Proxy):
                kind = "a tensor from outside" if isinstance(value, Tensor) else repr(value)
                problem = f"its step returns {kind} for state {name!r}: return {wanted}, as tensors"
                raise cell_error(declaration, problem)
        return tuple(value.node for value in given)
    raise cell_error(declaration, problem)


def _text(graph: fx.Graph) -> str:
    lines = []
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else qualified(node.target)
        named = [f"{key}={value!r}" for key, value in sorted(node.kwargs.items())]
        args = ", ".join([*map(repr, node.args), *named])
        lines.append(f"{node.name} = {node.op} {target}({args})")
    return "\n".join(lines)


def _check_shapes(recording: Recording) -> None:
    """Run the graph on small tensors, all sizes distinct, and look at what comes out.

    (Not on meta tensors: their kernels import what takes a second.)
    """
    declaration = recording.declaration
    sizes: dict[Width, int] = {"hidden_size": 7, 1: 1}
    primes = (p for p in range(11, 10**6) if all(p % d for d in range(2, p)))
    sizes.update(zip(declaration.sizes, primes, strict=False))

    def some(*shape: int) -> Tensor:
        return torch.zeros(shape, device="cpu")

    def shape_text(value: object) -> str:
        if not isinstance(value, Tensor):
            return type(value).__name__
        names = {3: "N", **{size: str(width) for width, size in sizes.items()}}
        shape = [names.get(size, str(size)) for size in value.shape]
        return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(shape)})"

    nodes: list[fx.Node] = []

    def product_of(value: Any, count: int) -> Tensor:
        name, (to, source) = list(declaration.matrices.items())[recording.products[count]]
        if not isinstance(value, Tensor) or value.shape != (3, sizes[source]):
            problem = f"a product with {name!r} takes (N, {source}), got {shape_text(value)}"
            raise node_error(declaration, problem, nodes[-1])
        return some(3, sizes[to])

    values: dict[str, object] = {}
    for given in inputs(declaration):
        rows = () if given.op == "param" else (3,)
        is_size = given.op == "size"
        values[given.name] = sizes[given.name] if is_size else some(*rows, sizes[given.width])
    with torch.inference_mode(False), torch.no_grad():
        returned = replay(recording, values, product_of, nodes.append)
    made = list(recording.graph.nodes)[-1].args[0]
    for (name, width), value, node in zip(declaration.states.items(), returned, made, strict=True):
        problem = ""
        if not isinstance(value, Tensor) or value.shape != (3, sizes[width]):
            problem = f"state {name!r} must be (N, {width}), got {shape_text(value)}"
        elif not value.is_floating_point():
            problem = f"state {name!r} must be floating point, got {value.dtype}: use torch.where"
        if problem:
            raise node_error(declaration, problem, node if node.op != "placeholder" else None)
