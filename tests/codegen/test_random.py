"""Random steps: what they are lowered to, and their kernels, against the steps themselves."""

import pytest
import torch
from eager import Case, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from random_steps import random_step, seeded_step

import rnnext
from rnnext.cell import declare
from rnnext.codegen import build


@st.composite
def steps(draw):
    return random_step(lambda items: draw(st.sampled_from(items)))


def check(step, streams, seed):
    torch.manual_seed(seed)
    case = Case(declare("Random", step.function(), **step.parts), streams)
    case.cell = declare("Random", step.function(by_hand=streams == 2), **step.parts)
    case.check(1e-9)


@settings(max_examples=48, deadline=None, derandomize=True)
@given(step=steps(), seed=st.integers(0, 2**31))
def test_program(step, seed):
    check(step, 1, seed)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(step=steps(), seed=st.integers(0, 2**31))
def test_program_with_tangents(step, seed):
    check(step, 2, seed)


@pytest.mark.skipif(build._compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("seed", range(6))
def test_kernel(seed):
    """Outputs and all gradients of a layer."""
    step = seeded_step(seed)
    kind = type(f"Random{seed}", (rnnext.Recurrent,), {"step": step.function(), **step.parts})
    torch.manual_seed(seed)
    layer = kind(3, 5, dtype=torch.float64).eval()
    cell, weights = layer.declaration, list(layer.parameters())
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    h0 = [torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True) for _ in cell.states]
    y, states = layer(x, h0[0] if len(h0) == 1 else tuple(h0))
    found = [y, *(states if isinstance(states, tuple) else [states])]
    expected = [*rnnext.reference.rnn(cell, x, h0, weights)]
    flowing = [torch.randn_like(result) for result in expected]
    inputs = [x, *h0, *weights]
    names = ["y", *(f"new {name}" for name in cell.states)]
    names += ["x", *cell.states, *(name for name, _ in layer.named_parameters())]
    for results in (found, expected):
        results += torch.autograd.grad(results, inputs, flowing, materialize_grads=True)
    for name, actual, right in zip(names, found, expected, strict=True):
        assert_close(actual, right, 1e-11, name)
