"""What a step must not do: each error names the cell, the line, and what to do."""

import inspect
import random
import re

import numpy
import pytest
import torch
import torch.nn.functional as F

from rnnext.cell import declare
from rnnext.codegen.errors import CellError
from rnnext.codegen.record import record
from rnnext.codegen.trace import lower

OUTSIDE = torch.ones(3)
LEARNT = torch.nn.Parameter(torch.tensor(1.0))
LINEAR = torch.nn.Linear(7, 7)


def loop(a, h):
    for row in h:
        a = a + row
    return a


def branch(a, h):
    if a.mean() > 0:  # here
        return h
    return a


def add_in_place(a, h):
    h += a  # here
    return h


def assign(a, h):
    h[:, 0] = 0  # here
    return h


def without_gradient(a, h):
    with torch.no_grad():  # here
        return h * a


def nothing(a, h):
    h * a


def helper(h):
    return h.cumsum(-1)  # here


def calls_helper(a, h):
    return helper(h) + a


def chunks(a, h):
    first, _ = h.chunk(2, -1)  # here
    return first


STEPS = [
    (branch, "control flow .* torch.where .*constants"),
    (lambda a, h: max(a, h), "control flow"),
    (lambda a, h: h * float(a[0, 0]), r"float\(\) .* torch.where"),
    (lambda a, h: h * int(a.sum()), r"int\(\)"),
    (lambda a, h: h * a.sum().item(), "item makes a Python value"),
    (lambda a, h: h * len(a), r"len\(\)"),
    (loop, "a loop over a tensor"),
    (lambda a, h, hidden_size: sum(h for _ in range(hidden_size)), r"range\(\)"),
    (add_in_place, r"`\+=` writes in place.* write h = h \+ x"),
    (assign, r"assignment to h\[\.\.\.\] writes in place: use torch.where"),
    (lambda a, h: h.add_(a), "add_ writes in place.* with add"),
    (lambda a, h: torch.add(a, h, out=h), "out= writes in place"),
    (lambda a, h: F.relu(a, inplace=True), "inplace=True writes in place"),
    (lambda a, h: F.relu(a, True), "inplace=True writes in place"),
    (lambda a, h: h * torch.rand_like(h), "rand_like draws random .* `noise`"),
    (lambda a, h: F.dropout(h, 0.5), "dropout draws random"),
    (lambda a, h: torch.nn.Dropout(0.5)(h), "dropout draws random"),
    (lambda a, h: h * torch.rand(()).item(), "rand draws random"),
    (lambda a, h: torch.bernoulli(a), "bernoulli draws random"),
    (lambda a, h: torch.normal(a, 1.0), "normal draws random"),
    (lambda a, h: h * random.random(), "draws random"),
    (lambda a, h: h * OUTSIDE, r"tensor of shape \(3,\) from outside.* declare it in `params`"),
    (lambda a, h: h * LEARNT, r"tensor of shape \(\) from outside"),
    (lambda a, h: LINEAR(h), r"tensor of shape \(7, 7\) from outside"),
    (lambda a, h: h * numpy.ones(3), "ndarray from NumPy"),
    (lambda a, h: numpy.ones(3) * h, "ndarray from NumPy"),
    (lambda a, h: (h, a), "returns 2 values: .* 1 in all"),
    (nothing, "returns nothing"),
    (lambda a, h: 1.0, "returns 1.0 for state 'h'"),
    (lambda a, h: OUTSIDE, "returns a tensor from outside"),
    (lambda a, h: h.sum(-1), r"state 'h' must be \(N, hidden_size\), got \(N,\)"),
    (lambda a, h: h.sum(-1, keepdim=True), r"must be \(N, hidden_size\), got \(N, 1\)"),
    (lambda a, h: h > a, "must be floating point, got torch.bool"),
    (without_gradient, r"no_grad .*detach\(\)"),
    (calls_helper, "Tensor.cumsum is not supported in a step: .* elementwise"),
    (lambda a, h: h.sort(-1)[0], "Tensor.sort is not supported"),
    (lambda a, h: h @ a.T, "`a @ b` is not supported.* declared in `matrices`"),
    (lambda a, h: torch.softmax(h, -1), "torch.softmax is not supported.* maxima"),
    (lambda a, h: h.max(-1, keepdim=True)[0] * a, "Tensor.max is not supported.* maxima"),
    (lambda a, h: h[:, :1] * a, r"`a\[b\]` is not supported.* units are not sliced"),
    (lambda a, h: torch.cat([h, a], -1), "torch.cat is not supported.* joined"),
    (chunks, "Tensor.chunk is not supported.* gates or states"),
    (lambda a, h: h.reshape(h.shape[1], -1).reshape(h.shape), "Tensor.reshape is not supported"),
    (lambda a, h: h.T.T, "Tensor.T is not supported"),
    (lambda a, h: torch.atan(h), "torch.atan is not supported in a step: .* elementwise"),
    (lambda a, h: h - h.mean(0), "Tensor.mean adds up rows of the batch"),
    (lambda a, h: h * h.shape[0], r"`a \* b` uses the number of rows"),
    (lambda a, h: h.nonexistent(), "Tensor.nonexistent cannot be compiled: .* no attribute"),
    (lambda a, h: h * undefined, "raised NameError"),  # noqa: F821
]
WITH_MATRIX = [
    (lambda a, h, m: h * m, "matrix 'm' may only be used as torch.nn.functional.linear"),
    (lambda a, h, m: h @ m, "matrix 'm' may only be used"),
    (lambda a, h, m: m @ h.T, "matrix 'm' may only be used"),
    (lambda a, h, m: F.linear(h, m.T), "matrix 'm' may only be used"),
    (lambda a, h, m: F.linear(m, m), "matrix 'm' may only be used"),
    (lambda a, h, m: torch.addmm(a, h, m.T), "matrix 'm' may only be used"),
    (lambda a, h, m: m, "matrix 'm' may only be used"),
    (lambda a, h, m: h + a, "matrix 'm' is never used in a product"),
    (
        lambda a, h, m: h.mean(-1, keepdim=True) @ m.T,
        r"a product with 'm' takes \(N, hidden_size\), got \(N, 1\)",
    ),
]


def line_of(step):
    """Where an error is to be: at `# here`, or else where the step begins."""
    for function in (helper, step) if step is calls_helper else (step,):
        lines, first = inspect.getsourcelines(function)
        for number, line in enumerate(lines, first):
            if "# here" in line:
                return number
    return step.__code__.co_firstlineno + (step is loop)


@pytest.mark.parametrize(("step", "problem"), STEPS + WITH_MATRIX)
def test_error(step, problem):
    matrices = {"m": ("hidden_size", "hidden_size")} if (step, problem) in WITH_MATRIX else {}
    cell = declare("MyCell", step, gates=("a",), matrices=matrices)
    with pytest.raises(CellError) as raised:
        lower(record(cell))
    assert re.match(f"MyCell: .*{problem}", str(raised.value)), raised.value
    place = f"\n  {re.escape(__file__)}:{line_of(step)}: \\S"
    assert re.search(place, str(raised.value)), raised.value
    assert torch.is_grad_enabled()


def test_a_wrong_product_names_widths():
    cell = declare(
        "MyCell",
        lambda a, h, c, hr: (F.linear(h, hr), a),
        gates=("a",),
        states={"h": "proj_size", "c": "hidden_size"},
        sizes=("proj_size",),
        matrices={"hr": ("proj_size", "hidden_size")},
    )
    with pytest.raises(CellError, match=r"takes \(N, hidden_size\), got \(N, proj_size\)"):
        record(cell)


def text_of(step, **parts):
    return record(declare("MyCell", step, gates=("a",), **parts)).text


def test_text_tells_steps_apart():
    """It is the key of a compiled cell: what step computes counts, and nothing else."""
    scale = 2.0

    def of_global(a, h):
        return scale * h + a

    first = text_of(of_global)
    assert text_of(lambda a, h: scale * h + a) == first
    scale = 2.0000000000000004
    assert text_of(of_global) != first
    assert text_of(lambda a, h: h * torch.tensor(0.5) + a) != text_of(
        lambda a, h: h * torch.tensor(0.25) + a
    )
    by_constant = [
        text_of(lambda a, h, k: h * k + a, constants={"k": value}) for value in (0.5, 0.25)
    ]
    assert by_constant[0] != by_constant[1]


def test_unused_work_is_left_out():
    def step(a, h):
        a.exp()
        return a + h

    assert "exp" not in text_of(step)
