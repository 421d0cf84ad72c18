"""What would be silently wrong in a compiled step, because a recording does not show it."""

import inspect
import random
import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from eager import Case
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint

from rnnext.cell import declare
from rnnext.codegen.errors import CellError
from rnnext.codegen.record import record
from rnnext.codegen.trace import lower


class Reversed(torch.autograd.Function):
    """What it returns is what it was given: nothing is recorded of it."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@torch.library.custom_op("rnnext_tests::sigmoid", mutates_args=())
def custom_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 3 * torch.sigmoid(x)


def overridable(x):
    if has_torch_function((x,)):
        return handle_torch_function(overridable, (x,), x)
    return 3 * x


def overridden(a, h):
    return overridable(a) * h


HOOKED = nn.Tanh()
HOOKED.register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))
SCRIPTED = torch.jit.trace(torch.tanh, torch.zeros(2))
COMPILED = torch.compile(torch.tanh, fullgraph=True, backend="eager")
DICE = numpy.random.default_rng(0)
LEFT = []


def hook(a, h):
    a.register_hook(lambda gradient: -gradient)  # here
    return a * h


def retained(a, h):
    a.retain_grad()  # here
    return a * h


def data(a, h):
    h.data = a  # here
    return a * h


def requires_no_grad(a, h):
    h.requires_grad = False  # here
    return a * h


def without_graph(a, h):
    return a * h if a.grad_fn is None else a


def inference(a, h):
    with torch.inference_mode():
        return a * h


def autocast(a, h):
    with torch.autocast("cpu"):
        return a * h


def set_dtype(a, h):
    torch.set_default_dtype(torch.float64)
    return a * h


def set_dtype_at_last(a, h):
    new = a * h
    torch.set_default_dtype(torch.float64)
    return new


def counts(a, h):
    LEFT.append(0)
    return a * h * len(LEFT)


def looks_back(a, h):
    LEFT.append(h)
    return a * LEFT[0]


def gives_back(a, h):
    LEFT.append(a * h)
    return LEFT[0]


def swallows(a, h):
    try:
        scale = float(a.sum())  # here
    except Exception:
        scale = 2.0
    return a * h * scale


def of_dtype(a, h):
    if a.dtype == torch.float32:  # here
        return a
    return a * h


def of_size(a, h, hidden_size):
    if hidden_size > 5:  # here
        return a
    return a * h


def of_number(a, h):
    return a if h.shape == (3, 7) else h


def of_names(a, h, c):
    return (a, c) if h.shape == c.shape else (a, c * 2)


STEPS = [
    (lambda a, h: Reversed.apply(a) * h, r"Reversed is a torch.autograd.Function, .*\.detach\(\)"),
    (lambda a, h: Rounded.apply(a) * h, "Rounded is a torch.autograd.Function"),
    (lambda a, h: checkpoint(torch.tanh, a, use_reentrant=True) * h, "autograd.Function"),
    (lambda a, h: HOOKED(a) * h, "Tanh has a backward hook"),
    (lambda a, h: custom_sigmoid(a) * h, "rnnext_tests.sigmoid.* is not one of torch's own"),
    (lambda a, h: torch.ops.rnnext_tests.sigmoid(a) * h, "is not one of torch's own functions"),
    (overridden, "overridable is not one of torch's own functions"),
    (lambda a, h: torch.func.grad(torch.sum)(a) * h, "torch.func is not supported"),
    (lambda a, h: torch.func.vjp(torch.tanh, a)[1](h)[0], "torch.func is not supported"),
    (lambda a, h: torch.vmap(torch.tanh)(a) * h, "non-Tensor arguments.* torch.func do not"),
    (lambda a, h: torch.autograd.grad(a.sum(), a)[0] * h, "differentiated as a whole"),
    (lambda a, h: SCRIPTED(a) * h, r"instead found type 'StandIn'.* torch.jit and .* do not"),
    (lambda a, h: COMPILED(a) * h, "torch.compile has no effect in a step"),
    (lambda a, h: numpy.tanh(a) * h, "NumPy, .* do not"),
    (hook, r"register_hook has no effect .* value.detach\(\)"),
    (retained, "retain_grad has no effect"),
    (lambda a, h: a.requires_grad_() * h, "requires_grad_ has no effect"),
    (without_graph, "grad_fn has no effect"),
    (data, "assignment to data .* pure function"),
    (requires_no_grad, "assignment to requires_grad"),
    (lambda a, h: torch.where(a > 0, a, h, out=h), "out= writes in place"),
    (inference, "torch.inference_mode has no effect"),
    (autocast, "torch.autocast has no effect"),
    (set_dtype, "torch.set_default_dtype has no effect"),
    (set_dtype_at_last, "torch.set_default_dtype has no effect"),
    (lambda a, h: torch.empty_like(a) + h, "empty_like makes undefined values"),
    (lambda a, h: a * torch.tensor(h), "torch.tensor of a tensor or a size"),
    (lambda a, h: nn.Linear(7, 7)(a) * h, "a module with weights cannot be made in a step"),
    (lambda a, h: nn.LayerNorm(7)(a) * h, "a module with weights cannot be made in a step"),
    (lambda a, h: h * random.Random().random(), "not the same each time"),
    (lambda a, h: h * DICE.random(), "not the same each time it is run.* `noise`"),
    (lambda a, h: h * numpy.random.rand(), "draws random numbers"),
    (counts, "not the same each time it is run"),
    (looks_back, "an earlier run of it has left behind.* `states`"),
    (gives_back, "returns a tensor from outside"),
    (swallows, r"float\(\) of what is only known later"),
    (lambda a, h: max(a, h), "control flow"),
    (lambda a, h: sorted([a, h])[0], "control flow"),
    (lambda a, h: torch.where(0 < a < 1, a, h), "control flow"),
    (of_dtype, "asks for a dtype, but is recorded once for float32 and float64"),
    (of_size, "asks for a size, but is recorded once for all sizes"),
    (lambda a, h: h * min(h.shape[1], 64), "asks for a size"),
    (of_number, "asks for a size"),
    (lambda a, h: a.detach().to(torch.int8) * h, "Tensor.to rounds to torch.int8"),
    (lambda a, h: a.half() * h, "Tensor.half rounds to torch.float16"),
    (lambda a, h: a.bfloat16().float() * h, "Tensor.bfloat16 rounds to torch.bfloat16"),
    (lambda a, h: (a * 1j + h).abs(), r"`a \* b` makes complex numbers"),
    (lambda a, h: a.to(torch.complex64).abs() * h, "Tensor.to makes complex numbers"),
    (lambda a, h: a.nan_to_num() * h, "Tensor.nan_to_num replaces .* give posinf and neginf"),
    (lambda a, h: F.rms_norm(a, a.shape[-1:]) * h, "rms_norm cannot be compiled: its default eps"),
    (lambda a, h: F.rms_norm(a, a.shape, eps=1e-5) * h, "rms_norm .* normalizes the units"),
    (lambda a, h: a / torch.finfo(a.dtype).eps * h, r"write torch.finfo\(torch.float32\)"),
    (lambda a, h: a[:, :100] * h, r"`a\[b\]` is right for some sizes only"),
    (lambda a, h: a.view(3, 7) * h, "Tensor.view is right for some sizes only"),
    (lambda a, h: a.mean(-1, keepdim=True).expand(-1, 7) * h, "for some sizes only"),
]


@pytest.mark.parametrize(("step", "problem"), STEPS)
def test_refused(step, problem):
    LEFT.clear()
    before = torch.get_default_dtype(), torch.autograd.Function.apply, nn.Module.__call__
    with pytest.raises(CellError) as raised:
        lower(record(declare("MyCell", step, gates=("a",))))
    assert re.match(f"MyCell: .*{problem}", str(raised.value), re.DOTALL), raised.value
    lines, first = inspect.getsourcelines(overridable if step is overridden else step)
    marked = [number for number, line in enumerate(lines, first) if "# here" in line]
    place = re.search(rf"\n  {re.escape(__file__)}:(\d+): \S", str(raised.value))
    assert int(place[1]) in (marked or range(first, first + len(lines)))
    assert before == (
        torch.get_default_dtype(),
        torch.autograd.Function.apply,
        nn.Module.__call__,
    )


def test_sizes_that_may_be_the_same():
    states = {"h": "k", "c": "hidden_size"}
    cell = declare("MyCell", of_names, gates=("a",), states=states, sizes=("k",))
    with pytest.raises(CellError, match="asks for a size"):
        record(cell)


def fixed(a, h, p):
    """What is the same for all sizes and dtypes can be asked for."""
    assert a.shape == h.shape
    assert a.shape != p.shape
    assert a.dtype == h.dtype
    assert a.dtype != torch.float16
    assert a.device == h.device
    assert a.dim() == a.ndim == len(a.shape) == 2
    assert p.dim() == a.mean(-1).ndimension() == 1
    assert a.is_floating_point()
    assert torch.is_floating_point(a)
    assert not a.is_complex()
    rows, units = a.shape
    same = torch.zeros(a.shape, dtype=a.dtype) + h.new_zeros((rows, units))
    return same + torch.tanh(a) * h + p


def test_fixed_questions():
    Case(declare("MyCell", fixed, gates=("a",), params={"p": 1.0})).check()


def compiled_or_not(a, h):
    """What has no effect but on how torch computes; and a hook of the forward."""
    module = nn.Tanh()
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return checkpoint(module, a, use_reentrant=False) * h + torch.ops.aten.sigmoid.default(a)


def test_what_is_recorded_through():
    Case(declare("MyCell", compiled_or_not, gates=("a",))).check()


def exact(a, h):
    """Numbers, in float64, as they are."""
    infinite, least = 1 / (a - a), torch.finfo(torch.float32).eps
    fixed = infinite.nan_to_num(0.1, 1e300, -1e300) + (-infinite).nan_to_num(posinf=0.1, neginf=0.3)
    return a * 0.1 + h * (1 + 2**-40) + fixed.detach() * least + torch.where(a > 0, a, 1e-30)


def test_exact_numbers():
    Case(declare("MyCell", exact, gates=("a",))).check(0)
