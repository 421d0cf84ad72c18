"""Where a class is defined does not change its cell."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import rnnext
from rnnext.cell import declare
from rnnext.codegen import emit
from rnnext.codegen.record import record
from rnnext.codegen.trace import lower


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def step(a, h, c, p, hidden_size):
    """What makes tensors, asks for a dtype, or has a derivative of its own kind in torch."""
    ones = torch.ones(a.shape, dtype=a.dtype) + a.new_zeros(a.shape)
    normed = F.layer_norm(a, (hidden_size,), p) + c.mean(-1, keepdim=True) * hidden_size**-0.5
    c = torch.where(normed > 0.1, ones * c, torch.full_like(c, 0.25)) + h.detach()
    return torch.maximum(torch.tanh(normed), 0.3 * c), c.clamp(-1.5, 1.5)


PARTS = {"gates": ("a",), "states": ("h", "c"), "params": {"p": 1.0}}
CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
}


def header(streams):
    return emit.header(lower(record(declare("Cell", step, **PARTS)), streams), "cell")


@pytest.mark.parametrize("streams", [1, 2])
def test_the_same_code_with_another_default_dtype(streams):
    plain = header(streams)
    with default_dtype(torch.bfloat16 if streams == 2 else torch.float64):
        assert header(streams) == plain


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_layer_defined_there(name):
    with CONTEXTS[name]():
        kind = type("Cell", (rnnext.Recurrent,), {"step": step, **PARTS})
    torch.manual_seed(1)
    layer, x = kind(3, 5), torch.randn(4, 2, 3, requires_grad=True)
    y, (h, c) = layer(x)
    expected = rnnext.reference.rnn(layer.declaration, x, [], list(layer.parameters()))
    torch.testing.assert_close([y, h, c], expected)
    found, right = (torch.autograd.grad(results[0].sum(), x) for results in ((y,), expected))
    torch.testing.assert_close(found, right)
