"""The op `rnn_step`, a cell's one step: `rnn` in another form."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import pytest
import torch
from cases import Case, Data
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rnnext

pytestmark = [
    pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]),
    pytest.mark.parametrize("batched", [True, False]),
]
rnn_step = torch.ops.rnnext.rnn_step.default


def arguments(
    cell: str, batched: bool, bias: bool = True, h0: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x, h0 and weights of a step, leaves of a graph."""
    data = Data(cell, Case(T=1, N=3 if batched else 1, C=2, H=4, bias=bias, h0=h0))
    x, states, weights = data.split(data.inputs(torch.float64))

    def formed(t: Tensor) -> Tensor:
        return t.detach().squeeze(0 if batched else (0, 1)).requires_grad_()

    return formed(x), [formed(h) for h in states], list(weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("h0", [True, False])
def test_it_is_rnn_on_one_step(cell: str, batched: bool, bias: bool, h0: bool) -> None:
    x, states, weights = arguments(cell, batched, bias, h0)
    inputs = [x, *states, *weights]
    lead = (1,) if batched else (1, 1)
    _, *expected = rnnext.ops.rnn(
        cell, x.view(*lead, *x.shape), [h.view(*lead, *h.shape) for h in states], weights
    )
    got = rnn_step(cell, x, states, *weights)
    grads = [torch.randn_like(h) for h in expected]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape[len(lead) :]
        torch.testing.assert_close(a, b.view(a.shape), rtol=0, atol=0)
    theirs = torch.autograd.grad(expected, inputs, grads)
    mine = torch.autograd.grad(got, inputs, [g.view(got[0].shape) for g in grads])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_opcheck(cell: str, batched: bool) -> None:
    x, states, weights = arguments(cell, batched)
    torch.library.opcheck(rnn_step, (cell, x, states, *weights))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_traced(cell: str, batched: bool, mode: type[AbstractContextManager[None]]) -> None:
    """What sees ops alone finds rnn."""
    x, states, weights = arguments(cell, batched)

    def run(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        return rnn_step(cell, x, states, *weights)  # type: ignore[no-any-return]

    with mode():
        expected = run(x, states, weights)
        graph = make_fx(run, tracing_mode="symbolic")(x, states, weights)
        torch.testing.assert_close(graph(x, states, weights), expected, rtol=0, atol=0)
    called = {node.target for node in graph.graph.nodes}
    assert torch.ops.rnnext.rnn.default in called or torch.ops.rnnext.rnn_train.default in called
    assert rnn_step not in called
    with FakeTensorMode(allow_non_fake_inputs=True), mode():
        fakes = run(
            torch.empty(x.shape),
            [torch.empty(h.shape) for h in states],
            [torch.empty(w.shape) for w in weights],
        )
    assert [h.shape for h in fakes] == [h.shape for h in expected]
