"""What a step must not do: each error names the cell, the line, and what to do."""

import inspect
import random
import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from eager import Case

from rnnext.cell import Bernoulli, Dropout, Param, declare
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
    (calls_helper, "Tensor.cumsum is not supported in a step: .* running sums .* is a state"),
    (lambda a, h: h.sort(-1)[0], "Tensor.sort is not supported.* not ranked"),
    (lambda a, h: h * h.argmax(-1, keepdim=True), "Tensor.argmax is not supported.* not ranked"),
    (lambda a, h: h * h.prod(-1, keepdim=True), "Tensor.prod is not supported.* logarithms"),
    (lambda a, h: h @ a.T, r"`a @ b` is not supported.* in `matrices`; .* \(a \* b\).sum\(-1"),
    (lambda a, h: torch.einsum("nh,nh->n", a, h), "einsum is not supported.* in `matrices`"),
    (lambda a, h: (h[:, :, None] * a[:, None]).sum(1), r"`a \* b` is not .* stays \(N, width\)"),
    (lambda a, h: torch.softmax(h, -1), r"torch.softmax is not supported.* e / e.sum\(-1"),
    (lambda a, h: h - h.logsumexp(-1, True), r"Tensor.logsumexp .* torch.log\(torch.exp\(z\)"),
    (lambda a, h: h.max(-1, keepdim=True)[0] * a, "Tensor.max .* maxima .* torch.maximum"),
    (lambda a, h: h[:, :1] * a, r"`a\[b\]` is not supported.* units are not sliced"),
    (lambda a, h: torch.cat([h, a], -1), "torch.cat is not supported.* joined"),
    (chunks, "Tensor.chunk is not supported.* gates or states"),
    (lambda a, h: h.reshape(h.shape[1], -1).reshape(h.shape), "Tensor.reshape .* some sizes only"),
    (lambda a, h: h.view(-1, 1).view(h.shape), r"Tensor.view .* stays \(N, width\)"),
    (lambda a, h: h[h > 0] * a, r"picks out values by a tensor: use torch.where"),
    (lambda a, h: a - h.mean(-1), r"size of tensor a \(7\) .* 3 rows of 7 units.* keepdim=True"),
    (lambda a, h: h[:, : h.shape[1] // 2], r"state 'h' must be \(N, hidden_size\), got \(N, 3\)"),
    (lambda a, h: h.T.T, "Tensor.T is not supported"),
    (lambda a, h: torch.atan(h), "torch.atan is not supported in a step: .* elementwise"),
    (lambda a, h: h / h.norm(dim=-1, keepdim=True) - h.mean(0), "norm .* with sums over the batch"),
    (lambda a, h: h - h.mean(), "Tensor.mean .* with sums over the batch"),
    (lambda a, h: h - h.mean(-1, True).mean(0), "Tensor.mean .* with sums over the batch"),
    (lambda a, h: h * torch.zeros_like(h).mean(0), "only what is the same in all rows"),
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


def test_a_line_that_ends_in_a_colon_is_whole():
    with pytest.raises(CellError, match=r"test_record.py:\d+: if a.mean\(\) > 0:  # here$"):
        record(declare("MyCell", branch, gates=("a",)))


def text_of(step, **parts):
    return record(declare("MyCell", step, **{"gates": ("a",), **parts})).text


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


def test_text_tells_declarations_apart():
    """The same step of other kinds of values is another cell."""
    hidden = "hidden_size"
    families = {
        "lambda a, b, h: h * a * b": [
            {"gates": ("a", "b")},
            {"gates": ("b", "a")},
            {"input_gates": ("b",)},
            {"noise": {"b": Dropout(0.1)}},
            {"noise": {"b": Dropout(0.2)}},
            {"noise": {"b": Bernoulli(0.1)}},
            {"noise": {"b": Dropout("rate")}, "constants": {"rate": 0.3}},
            {"noise": {"b": Dropout(0.1, per="sequence")}},
            {"noise": {"b": Dropout(0.1, size=1)}},
            {"params": {"b": 0.5}},
            {"params": {"b": Param(0.5, size=1)}},
        ],
        "lambda a, n_x, n_h, h: h * a + n_x * n_h": [
            {"apart_gates": ("n",)},
            {"gates": ("a", "n_x", "n_h")},
        ],
        "lambda a, h, m: (a, m + h.mean(-1, keepdim=True))": [
            {"states": ("h", "m")},
            {"states": {"h": hidden, "m": 1}},
        ],
        "lambda a, h, W: F.linear(a, W) * h": [
            {"states": {"h": "p"}, "sizes": ("p", "q"), "matrices": {"W": ("p", hidden)}},
            {"states": {"h": "q"}, "sizes": ("p", "q"), "matrices": {"W": ("q", hidden)}},
        ],
    }
    for step, kinds in families.items():
        texts = [text_of(eval(step), **kind) for kind in kinds]
        assert len(set(texts)) == len(texts)


def test_a_cell_is_recorded_once():
    """So that its derivatives, compiled later, are those of the same step."""
    scale = 2.0

    def step(a, h):
        return scale * h + a

    cell = declare("MyCell", step, gates=("a",))
    first = record(cell)
    scale = 3.0
    assert record(cell) is first


def test_unused_work_is_left_out():
    def step(a, h):
        a.exp()
        return a + h

    assert "exp" not in text_of(step)


def test_unused_products_are_left_out():
    """And do not stand in the way of the others."""

    def step(a, h, p, W, P):
        F.linear(a * h, W)
        y = F.linear(a, P)
        return F.linear(h, W) + a, p + y

    cell = declare(
        "MyCell",
        step,
        gates=("a",),
        states={"h": "hidden_size", "p": "k"},
        sizes=("k",),
        matrices={"W": ("hidden_size", "hidden_size"), "P": ("k", "hidden_size")},
    )
    assert record(cell).products == (1, 0)
    Case(cell).check()
