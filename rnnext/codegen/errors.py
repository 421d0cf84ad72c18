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
_MATRIX = "products need a matrix that is declared in `matrices`"
_MAXIMUM = "maxima and minima over the units of a row are not supported, sums are"
_SHAPE = (
    "every value stays (N, width), and units are not sliced, joined or moved: declare several "
    "gates or states in place of parts of one"
)


def _all(names: str, advice: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), advice)


# Refused as soon as they are recorded; the others where they turn out not to fit.
REFUSED = {
    **_all("matmul mm addmm bmm baddbmm linear bilinear einsum dot mv", _MATRIX),
    **_all("amax amin aminmax softmax log_softmax softmin logsumexp", _MAXIMUM),
    **_all("cat concat stack hstack vstack chunk split tensor_split unbind", _SHAPE),
    **_all("flip roll gather repeat index_select", _SHAPE),
    **_all("cumsum cumprod sort argsort topk argmax argmin", _ELEMENTWISE),
}
_ADVICE = {
    **REFUSED,
    **_all("max min", _MAXIMUM),
    **_all("select slice getitem view reshape flatten unflatten narrow index", _SHAPE),
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
        return f"{os.path.basename(self.file)}:{self.number}: {self.text}".rstrip(": ")

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
    place = f"\n  {line.file}:{line.number}: {line.text}".rstrip(": ") if line else ""
    return CellError(f"{declaration.name}: {problem}{place}")


def node_error(declaration: Declaration, problem: str, node: fx.Node | None) -> CellError:
    """An error that names the line which recorded a node."""
    return cell_error(declaration, problem, node.meta.get("line") if node is not None else None)


def unsupported(*names: str) -> str:
    """What to do in place of an operation, by its first name of which something is known."""
    advice = next((_ADVICE[name] for name in names if name in _ADVICE), _ELEMENTWISE)
    return f"is not supported in a step: {advice}"


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
    return qualified(node.target).replace("torch._C._nn.", "torch.nn.functional.")


def qualified(target: Any) -> str:
    """A function by its module and name."""
    module = getattr(target, "__module__", None) or getattr(target, "__objclass__", torch).__name__
    return f"{module.lstrip('_')}.{getattr(target, '__name__', repr(target))}"


def _inside(file: str) -> bool:
    return file.startswith((_TORCH, _HERE)) or file in _CALLERS
