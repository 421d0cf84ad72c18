"""What is said of a step that cannot be compiled: the cell, the line, what to do instead."""

from __future__ import annotations

import inspect
import linecache
import operator
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx
from torch.fx.graph import magic_methods

if TYPE_CHECKING:
    from rnnext.cell import Declaration

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep
_CALLERS = {  # of a step
    os.path.join(os.path.dirname(_HERE[:-1]), name) for name in ("cell.py", "recurrent.py")
}

_ELEMENTWISE = (
    "a step is made of elementwise operations, sums over the units of a row (sum, mean, var, std, "
    "norm, layer_norm, ...) and products with a declared matrix"
)
_MATRIX = (
    "products need a matrix that is declared in `matrices`; of two computed values there are "
    "a * b and (a * b).sum(-1, keepdim=True)"
)
_SUMS = "maxima and minima over the units of a row are not supported, sums are"
_MAXIMUM = f"{_SUMS}; of two values there are torch.maximum(a, b) and torch.minimum(a, b)"
_SOFTMAX = f"{_SUMS}: e = torch.exp(z), e / e.sum(-1, keepdim=True), with z bounded"
_LOGSUMEXP = f"{_SUMS}: torch.log(torch.exp(z).sum(-1, keepdim=True)), with z bounded"
_ORDER = (
    "units have no order among each other: they are not ranked or picked out by their values, and "
    "there are no running sums over them; sums over all units of a row are supported, and a sum "
    "over time is a state"
)
_PRODUCT = "products over the units of a row are not supported, sums are: of logarithms, then exp"
_SHAPE = (
    "every value stays (N, width), and units are not sliced, joined or moved: declare several "
    "gates or states in place of parts of one"
)


def _all(names: str, advice: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), advice)


# Refused as soon as they are recorded; the others where they turn out not to fit.
REFUSED = {
    **_all("matmul mm addmm bmm baddbmm addbmm addmv addr linear bilinear mv", _MATRIX),
    **_all("einsum dot vdot inner outer ger tensordot kron chain_matmul multi_dot cdist", _MATRIX),
    **_all("amax amin aminmax", _MAXIMUM),
    **_all("softmax softmin", _SOFTMAX),
    **_all("log_softmax logsumexp", _LOGSUMEXP),
    **_all("cat concat concatenate stack hstack vstack dstack column_stack", _SHAPE),
    **_all("chunk split tensor_split hsplit vsplit unbind unfold pad glu", _SHAPE),
    **_all("flip fliplr roll gather repeat tile repeat_interleave index_select take", _SHAPE),
    **_all("masked_select nonzero argwhere take_along_dim scatter index_put", _SHAPE),
    **_all("cumsum cumprod cummax cummin logcumsumexp sort argsort msort topk kthvalue", _ORDER),
    **_all("argmax argmin median nanmedian quantile mode searchsorted bucketize diff", _ORDER),
    **_all("prod nanprod", _PRODUCT),
}
_ADVICE = {
    **REFUSED,
    **_all("max min", _MAXIMUM),
    **_all("select slice getitem view view_as reshape flatten unflatten narrow index", _SHAPE),
    **_all("transpose permute t T mT expand unsqueeze squeeze movedim", _SHAPE),
}


class CellError(ValueError):
    """A step that cannot be compiled: the message names the cell, the line, and what to do."""


class Line(NamedTuple):
    """Where a call stands in the user's files."""

    file: str
    number: int

    @property
    def text(self) -> str:
        """The line itself, or "" where the source is not to be had."""
        return linecache.getline(self.file, self.number).strip()

    def short(self) -> str:
        """``my_cells.py:12: z = torch.sigmoid(z)``."""
        return self._place(os.path.basename(self.file))

    def long(self) -> str:
        """The same with the file's whole path."""
        return self._place(self.file)

    def _place(self, file: str) -> str:
        return f"{file}:{self.number}: {self.text}" if self.text else f"{file}:{self.number}"

    @staticmethod
    def of_caller() -> Line | None:
        """The innermost line that is not torch's or the compiler's."""
        frame = sys._getframe(1)
        while frame is not None and _inside(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        return Line(frame.f_code.co_filename, frame.f_lineno) if frame is not None else None

    @staticmethod
    def of_error(error: BaseException) -> Line | None:
        """The user's line in which an error was raised."""
        line, trace = None, error.__traceback__
        while trace is not None:
            if not _inside(trace.tb_frame.f_code.co_filename):
                line = Line(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
            trace = trace.tb_next
        return line


def cell_error(declaration: Declaration, problem: str, line: Line | None = None) -> CellError:
    """The error; without a line it names the first one of the step."""
    if line is None:
        code = getattr(inspect.unwrap(declaration.step), "__code__", None)
        line = Line(code.co_filename, code.co_firstlineno) if code is not None else None
    return CellError(f"{declaration.name}: {problem}" + (f"\n  {line.long()}" if line else ""))


def node_error(declaration: Declaration, problem: str, node: fx.Node | None) -> CellError:
    """An error that names the line which recorded a node."""
    return cell_error(declaration, problem, node.meta.get("line") if node is not None else None)


def call_error(declaration: Declaration, node: fx.Node, reason: str) -> CellError:
    """The error of a recorded call that torch itself refuses."""
    return node_error(declaration, f"{spelling(node)} cannot be compiled: {reason}", node)


def unsupported(*names: str, shaped: bool = False) -> str:
    """What to do in place of an operation, by its first name of which something is known.

    Args:
        names: of the operation.
        shaped: its result is not (N, width).
    """
    usual = _SHAPE if shaped else _ELEMENTWISE
    advice = next((_ADVICE[name] for name in names if name in _ADVICE), usual)
    return f"is not supported in a step: {advice}"


def first_line(error: Exception) -> str:
    """The first line of an error's text, which says enough of most of torch's."""
    return str(error).strip().split("\n")[0]


def raised(error: Exception) -> str:
    """What a step raised, and what to do where a stand-in was given to what takes no such thing."""
    kind = type(error).__name__
    return f"{kind} while it was recorded: {first_line(error)}{_hint(error)}"


def _hint(error: Exception) -> str:
    text = str(error)
    if type(error).__module__.startswith("torch._dynamo"):
        return "; torch.compile has no effect in a step: call the function itself"
    if "torch.finfo()" in text:
        return "; a step is recorded once for float32 and float64: write torch.finfo(torch.float32)"
    if "StandIn" not in text:
        return ""
    return (
        " (a StandIn is what stands for a tensor while the step is recorded: torch's own functions "
        "and operators take it; NumPy, math, torch.jit and torch.func do not)"
    )


def call_name(node: fx.Node) -> str:
    """The bare name of a recorded call: "sigmoid"."""
    if node.target is getattr:
        return str(node.args[1])
    return str(getattr(node.target, "__name__", node.target))


def spelling(node: fx.Node) -> str:
    """What a recorded call is called in the user's language: "torch.sigmoid"."""
    if node.op == "call_method" or node.target is getattr:
        return f"Tensor.{call_name(node)}"
    if call_name(node) in magic_methods and node.target is getattr(operator, call_name(node), None):
        return f"`{magic_methods[call_name(node)].format('a', 'b')}`"
    name = qualified(node.target)
    for module in ("torch._C._nn.", "rnnext.codegen.functions."):
        name = name.replace(module, "torch.nn.functional.")
    return name


def qualified(target: Any) -> str:
    """A function by its module and name."""
    module = getattr(target, "__module__", None) or getattr(target, "__objclass__", torch).__name__
    return f"{module.lstrip('_')}.{getattr(target, '__name__', repr(target))}"


def _inside(file: str) -> bool:
    return file.startswith((_TORCH, _HERE)) or file in _CALLERS
