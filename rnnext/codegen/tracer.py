"""Stand-ins for the arguments of a step, and the rules for what may be done with them.

What is done with a stand-in becomes a node of a torch.fx graph, or is refused: what writes, draws
or asks for data, and what has a derivative that is not in the graph.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from rnnext.codegen import static
from rnnext.codegen.errors import CellError, Line, cell_error, qualified
from rnnext.codegen.examples import Examples
from rnnext.codegen.functions import SAME, scalar

if TYPE_CHECKING:
    from rnnext.cell import Declaration
    from rnnext.codegen.record import Input

_RANDOM = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        *("bernoulli", "normal", "poisson", "multinomial", "binomial", "rrelu", "gumbel_softmax"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "native_dropout", "alpha_dropout"),
        *("feature_dropout", "feature_alpha_dropout"),
    }
)
_TO_PYTHON = frozenset({"item", "tolist", "numpy", "__array__", "is_nonzero", "equal", "allclose"})
_TO_TENSOR = frozenset({"tensor", "as_tensor", "asarray"})
_UNDEFINED = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
_AUTOGRAD = frozenset(
    {
        *("backward", "grad", "grad_fn", "requires_grad", "requires_grad_", "is_leaf"),
        *("retain_grad", "retains_grad", "register_hook", "register_post_accumulate_grad_hook"),
    }
)
_PURE = "and a step is a pure function: make a new value, "
_CONTROL = "use torch.where for a choice between values, or declare what is fixed in `constants`"
_OWN_DERIVATIVE = (
    "would be lost, since the step is recorded and then differentiated: write it in torch "
    "operations, with value.detach() where no gradient is to flow; a value forward with another's "
    "gradient is z + (forward - z).detach()"
)


class Tracer(fx.Tracer):
    """Keeps the graph of one recording."""

    def __init__(self, declaration: Declaration, inputs: list[Input]) -> None:
        super().__init__()
        self.graph = fx.Graph(tracer_cls=Tracer)
        self.root = nn.Module()
        self.declaration = declaration
        self.answering = False  # a static question, by running torch
        self.examples = [
            Examples(declaration, inputs, dtype) for dtype in (torch.float32, torch.float64)
        ]
        self._modes = _modes()
        self.failure: CellError | None = None

    def fail(self, problem: str, catch: bool = False) -> NoReturn:
        """Raise an error that names the user's line that is running.

        Args:
            problem: what is wrong.
            catch: whether the error may be caught; if not, it is kept and raised once more.
        """
        error = cell_error(self.declaration, _within() or problem, Line.of_caller())
        if not catch:
            self.failure = self.failure or error
        raise error

    def example(self, node: fx.Node) -> list[Any]:
        """What a node is worth for small tensors, of float32 and of float64."""
        self.answering = True
        try:
            return [examples.value(node, self.declaration) for examples in self.examples]
        finally:
            self.answering = False

    def proxy(self, node: fx.Node) -> StandIn:
        return StandIn(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any) -> fx.Node:
        if kind in ("call_function", "call_method"):
            self._check_call(target, args, kwargs)
            target = SAME.get(target, target)
        node = super().create_node(kind, target, args, kwargs, *rest)
        if kind not in ("placeholder", "output"):
            node.meta["line"] = Line.of_caller()
        return node

    def _check_call(self, target: Any, args: Any, kwargs: Any) -> None:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        in_place = f"writes in place, {_PURE}"
        if problem := self._changed_mode():
            self.fail(problem)
        if target in _IN_PLACE:
            sign = _IN_PLACE[target]
            self.fail(f"`{sign}=` {in_place}write h = h {sign} x in place of h {sign}= x")
        if name in _AUTOGRAD:
            self.fail_autograd(name)
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
        if name in _UNDEFINED:
            self.fail(f"{name} makes undefined values: use zeros or ones")
        if not (isinstance(target, str) or _is_torchs(target)):
            self.fail(
                f"{qualified(target)} is not one of torch's own functions, so it cannot be "
                "compiled: write in the step what it does, in torch operations"
            )
        if target is operator.getitem:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            nodes = [part for part in index if isinstance(part, fx.Node)]
            if any(isinstance(self.example(node)[0], Tensor) for node in nodes):
                self.fail("h[...] picks out values by a tensor: use torch.where(z > 0, h, 0)")

    def _changed_mode(self) -> str:
        """What is to be said of a mode of torch's in which the step did not begin."""
        states = zip(_MODES, _modes(), self._modes, strict=True)
        changed = [mode for mode, now, before in states if now != before]
        return f"{changed[0]} has no effect in a step: leave it out" if changed else ""

    def fail_autograd(self, name: str) -> NoReturn:
        """Refuse what reads or changes the state of autograd."""
        self.fail(
            f"{name} has no effect in a step, which is recorded and then differentiated as a "
            "whole: value.detach() is what stops a gradient"
        )

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy) and a.tracer is not self:
            self.fail(
                "its step uses a value that an earlier run of it has left behind: what goes from "
                "step to step is declared in `states`"
            )
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
        answer = static.answer(obj.node, self.example)
        if isinstance(answer, bool):
            return answer
        if answer:
            self.fail(f"its step asks {answer}")
        self.fail(f"Python control flow (if, while, and, or, not) on data: {_CONTROL}")

    def iter(self, obj: Any) -> Iterator[Any]:
        if isinstance(self.example(obj.node)[0], torch.Size):
            return (obj[axis] for axis in range(len(obj)))
        self.fail("a loop over a tensor or a size: a step works on all rows at once, without loops")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Refuse what would be called with stand-ins and lose its own derivative.

        Nothing else sees a function that returns its argument as it is. Other threads are let be.
        """
        apply, call = torch.autograd.Function.__dict__["apply"], nn.Module.__call__
        thread, dtype = threading.get_ident(), torch.get_default_dtype()

        def is_step() -> bool:
            return threading.get_ident() == thread and not self.answering

        def refused(cls: type, *args: Any, **kwargs: Any) -> Any:
            if is_step():
                self.fail(
                    f"{cls.__name__} is a torch.autograd.Function, which is not supported in a "
                    f"step: its backward {_OWN_DERIVATIVE}"
                )
            return apply.__func__(cls, *args, **kwargs)

        def checked(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_step() and (module._backward_hooks or module._backward_pre_hooks):
                name = type(module).__name__
                self.fail(f"{name} has a backward hook, whose gradient {_OWN_DERIVATIVE}")
            return call(module, *args, **kwargs)

        with _ONE_AT_A_TIME, _Watch(self):
            torch.autograd.Function.apply = classmethod(refused)  # type: ignore[method-assign, assignment]
            nn.Module.__call__ = checked  # type: ignore[method-assign]
            try:
                yield
                if problem := self._changed_mode():
                    raise cell_error(self.declaration, problem)
            finally:
                if torch.get_default_dtype() != dtype:
                    torch.set_default_dtype(dtype)
                torch.autograd.Function.apply = apply  # type: ignore[method-assign]
                nn.Module.__call__ = call  # type: ignore[method-assign]


class StandIn(fx.Proxy):
    """Stands for a tensor or a size. (The name is for messages that are not ours.)"""

    __array_ufunc__ = None  # NumPy's arrays leave an operation to this class

    tracer: Tracer

    def _fail_to_python(self, kind: str, catch: bool = False) -> NoReturn:
        hint = "; of a size, write hidden_size ** 0.5 in place of math.sqrt(hidden_size)"
        self.tracer.fail(f"{kind} of what is only known later: {_CONTROL}{hint}", catch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):  # some protocol's, as of an array
            raise AttributeError(name)
        if name in _AUTOGRAD:
            self.tracer.fail_autograd(name)
        if name == "ndim":
            return self.tracer.example(self.node)[0].ndim
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node", "line"):
            self.tracer.fail(f"an assignment to {name} of a value changes it, {_PURE}as h = z")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"StandIn({self.node.name})"

    def dim(self) -> int:
        """The number of axes, which is the same for all sizes."""
        return self.tracer.example(self.node)[0].dim()

    ndimension = dim

    def __float__(self) -> float:
        self._fail_to_python("float()")

    def __int__(self) -> int:
        self._fail_to_python("int()")

    def __index__(self) -> int:
        self._fail_to_python("an index or a range()", catch=True)  # torch asks, and goes on

    def __len__(self) -> int:
        value = self.tracer.example(self.node)[0]
        if isinstance(value, torch.Size):
            return len(value)
        self._fail_to_python("len()")

    def __contains__(self, item: object) -> bool:
        self._fail_to_python("`in`")

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.fail("an assignment to h[...] writes in place: use torch.where")


class _Attribute(fx.proxy.Attribute, StandIn):
    """``h.T``, or ``h.sigmoid`` before it is called: recorded when it is used."""

    def __init__(self, root: StandIn, name: str) -> None:
        super().__init__(root, name)
        self.line = Line.of_caller()

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        node = super().node
        node.meta["line"] = self.line
        return node


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
    setattr(StandIn, f"__{_target.__name__}__", _in_place(_target))


class _Watch(TorchFunctionMode):
    """Sees calls of torch without a stand-in among the arguments, and what they do."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "torch")
        if self.tracer.answering:
            return func(*args, **kwargs)
        if name == "_set_grad_enabled":  # not called, since nothing would set it back
            self.tracer.fail("torch.no_grad and enable_grad have no effect: use value.detach()")
        if name in _TO_TENSOR and any(isinstance(arg, StandIn) for arg in args):
            self.tracer.fail(f"torch.{name} of a tensor or a size: use it as it is")
        before = torch.get_rng_state()
        result = func(*args, **kwargs)
        drawn = name in _RANDOM and isinstance(result, Tensor)
        if drawn or not torch.equal(before, torch.get_rng_state()):
            self.tracer.fail(f"{name} draws random numbers: declare them in `noise`")
        return result


_ONE_AT_A_TIME = threading.RLock()
_MODES = ("torch.inference_mode", "torch.autocast", "torch.autocast", "torch.set_default_dtype")


def _modes() -> tuple[object, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return (torch.is_inference_mode_enabled(), *autocast, torch.get_default_dtype())


def _within() -> str:
    """What is to be said of the function of torch's that this is called from, if anything is."""
    frame, torchs = sys._getframe(1), torch.__path__[0] + os.sep
    while frame is not None and frame.f_code.co_name != "_run":  # which runs the step
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        place = file.removeprefix(torchs).replace(os.sep, "/")
        if name == "__init__" and place.startswith("nn/modules/"):
            return (
                "a module with weights cannot be made in a step: declare weights in `matrices` "
                "and `params`, and use them with functions of torch.nn.functional"
            )
        if place.startswith("_functorch/"):
            return (
                "torch.func is not supported in a step, which is differentiated as a whole: write "
                "out the derivative that it computes"
            )
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _is_torchs(target: Any) -> bool:
    """Whether a function is one of torch's (and not registered with it), or an operator."""
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in ("aten", "prims")
    if isinstance(target, torch._ops.OpOverloadPacket):
        return target._qualified_op_name.startswith(("aten::", "prims::"))
    roots = ("torch", "_operator", "builtins", __name__.partition(".")[0])
    return qualified(target).lstrip("_").partition(".")[0] in [root.lstrip("_") for root in roots]


def _positional(target: Any, args: Sequence[object], name: str) -> bool:
    code = getattr(target, "__code__", None)
    if not isinstance(code, CodeType) or name not in code.co_varnames[: code.co_argcount]:
        return False
    place = code.co_varnames.index(name)
    return place < len(args) and args[place] is True
