"""Sums in the backward: shared, without what is the same for a row or in all rows, and the same
values.
"""

import pytest
import torch

from rnnext.codegen.ir import evaluate, walk, with_gradient
from rnnext.codegen.simplify import Builder
from rnnext.codegen.sums import Sums

MAKE = Builder()
SIZE, OTHER_SIZE = MAKE.leaf("size", 0), MAKE.leaf("size", 1)
X, Z = MAKE.leaf("gate", 0, "hidden_size"), MAKE.leaf("gate", 1, "hidden_size")
D, E = MAKE.leaf("dnext", 0, "hidden_size"), MAKE.leaf("dnext", 1, "hidden_size")
NARROW = MAKE.leaf("dnext", 2, "proj_size")
MEAN = MAKE("div", MAKE.sum(X, SIZE), SIZE)
CENTRED = MAKE("sub", X, MEAN)
SCALE = MAKE("rsqrt", MAKE.sum(MAKE("mul", CENTRED, CENTRED), SIZE))
LATE = MAKE.sum(MAKE("mul", D, CENTRED), SIZE)  # a total that others depend on
THIRD = MAKE.constant(1 / 3)


def sum_of(*nodes):
    """Over the units of the nodes' sum."""
    total = nodes[0]
    for node in nodes[1:]:
        total = MAKE("add", total, node)
    return MAKE.sum(total, SIZE)


def mul(a, b):
    return MAKE("mul", a, b)


def rewritten(node):
    sizes = {"hidden_size": SIZE, "proj_size": OTHER_SIZE}
    return Sums(MAKE, [node], sizes.__getitem__)(node)


def sums_in(node):
    return [n for n in walk([node]) if n.op == "sum"]


def thirds():
    """Of three parts around the mean of all three, whose sums are added up."""
    parts = [X, Z, mul(X, Z)]
    mean = mul(MAKE("div", sum_of(*parts), SIZE), THIRD)
    sums = [MAKE("neg", sum_of(mul(D, SCALE), mul(MAKE("sub", p, mean), LATE))) for p in parts]
    return MAKE("add", MAKE("add", sums[0], sums[1]), sums[2])


WRITTEN = {
    "what adds up to nothing": (sum_of(mul(D, SCALE), mul(CENTRED, LATE)), mul(sum_of(D), SCALE)),
    "two sums": (MAKE("add", sum_of(D), sum_of(mul(E, X))), sum_of(D, mul(E, X))),
    "what is the same for a row": (sum_of(mul(mul(X, D), LATE)), mul(sum_of(mul(X, D)), LATE)),
    "a value of the forward": (sum_of(mul(X, SCALE)), sum_of(mul(X, SCALE))),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_rewritten(name):
    given, expected = WRITTEN[name]
    assert rewritten(given) is expected


@pytest.mark.parametrize(
    "node",
    [
        *(given for given, _ in WRITTEN.values()),
        thirds(),
        sum_of(mul(D, SCALE), mul(X, LATE)),
        sum_of(MAKE("div", MAKE("sub", D, LATE), SIZE), MAKE("neg", E)),
        sum_of(mul(D, SCALE), mul(E, MEAN), mul(mul(D, E), LATE)),
        MAKE("sub", mul(sum_of(mul(D, SCALE)), LATE), MAKE("div", sum_of(E, LATE), SIZE)),
        MAKE("add", MAKE.sum(NARROW, OTHER_SIZE), sum_of(D)),
    ],
)
def test_same_value(node):
    generator = torch.Generator().manual_seed(0)
    widths = {X: 7, Z: 7, D: 7, E: 7, NARROW: 4}
    leaves = {
        (leaf.op, leaf.index): torch.randn(3, width, generator=generator, dtype=torch.float64)
        for leaf, width in widths.items()
    }
    leaves |= {("size", k): torch.tensor(size, dtype=torch.float64) for k, size in ((0, 7), (1, 4))}
    new = rewritten(node)
    values = evaluate([node, new], leaves)
    torch.testing.assert_close(values[new], values[node], rtol=1e-12, atol=1e-12)


BATCH = MAKE.leaf("batch", 0)
PARAM = MAKE.leaf("param", 0, "hidden_size")
ONE = MAKE.leaf("dnext", 3, 1)


def rows_of(node):
    """Over the rows of the batch."""
    return MAKE.batch_sum(node, BATCH)


BATCH_CENTRED = MAKE("sub", X, MAKE("div", rows_of(X), BATCH))
BATCH_SCALE = mul(MAKE("rsqrt", rows_of(mul(BATCH_CENTRED, BATCH_CENTRED))), PARAM)
BATCH_LATE = rows_of(mul(D, BATCH_CENTRED))
BATCH_WRITTEN = {  # and how many sums are left that depend on gradients
    "what adds up to nothing": (
        rows_of(MAKE("add", mul(D, BATCH_SCALE), mul(BATCH_CENTRED, BATCH_LATE))),
        1,
    ),
    "what is the same in all rows": (
        rows_of(mul(MAKE("add", mul(X, D), BATCH_LATE), PARAM)),
        1,
    ),
    "a sum that the forward has": (rows_of(mul(MAKE("add", X, X), BATCH_LATE)), 1),
    "one value a row": (rows_of(mul(ONE, PARAM)), 1),
    "sums of sums": (MAKE("sub", rows_of(D), rows_of(MAKE("div", rows_of(mul(D, X)), X))), 2),
}


@pytest.mark.parametrize("name", BATCH_WRITTEN)
def test_sums_over_the_batch(name):
    given, count = BATCH_WRITTEN[name]
    new = Sums(MAKE, [given], lambda width: BATCH, batch=True)(given)
    generator = torch.Generator().manual_seed(0)
    leaves = {
        (leaf.op, leaf.index): torch.randn(*shape, generator=generator, dtype=torch.float64)
        for leaf, shape in {X: (3, 7), D: (3, 7), ONE: (3, 1), PARAM: (7,)}.items()
    }
    leaves["batch", 0] = torch.tensor(3.0, dtype=torch.float64)
    values = evaluate([given, new], leaves)
    torch.testing.assert_close(values[new], values[given], rtol=1e-12, atol=1e-12)
    sums = [n for n in walk([new]) if n.op == "batch_sum"]
    gradients = with_gradient([new])
    assert sum(n in gradients for n in sums) == count
    assert all(n.width == "hidden_size" for n in sums)
    assert {n for n in sums if n not in gradients} <= set(walk([given]))


def test_the_sums_of_a_norm_over_several_parts_are_one():
    (total,) = set(sums_in(rewritten(thirds()))) - set(sums_in(SCALE))
    assert total.args[0] is D or total.args[0].op in ("add", "mul")
    assert LATE not in sums_in(rewritten(thirds()))


def test_sums_over_units_of_other_widths_stay_apart():
    node = MAKE("add", MAKE.sum(NARROW, OTHER_SIZE), sum_of(D))
    assert len(sums_in(rewritten(node))) == 2
