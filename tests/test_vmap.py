"""torch.vmap over the op, and with it jacobians, ensembles and gradients of each sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, Case, Data, error
from test_derivatives import Run, data_of, equal, function_of, loss_of, tangents
from torch import Tensor, vmap
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state
from written_cells import ZOO

import rnnext
from rnnext import ops, reference

SAMPLES = 3
SOME = ["MinimalGated", "IndRNN", "SLSTM", "Everything"]
CASES = (
    Case(T=4, N=2, C=3, H=5, L=2, D=2),
    Case(T=5, N=3, C=2, H=17, D=2, lengths=(5, 3, 3), h0=False, bias=False),
    Case(T=60, N=3, C=2, H=3),  # several time blocks
    Case(T=3, N=2, C=0, H=4),
)


def of_samples(inputs: list[Tensor], which: set[int]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Inputs of which those in `which` are another for each sample; and vmap's in_dims."""
    generator = torch.Generator().manual_seed(3)
    given, dims = [], []
    for k, t in enumerate(inputs):
        dim = (k % (t.dim() + 1) if k % 2 else 0) if k in which else None
        dims.append(dim)
        if dim is None:
            given.append(t.detach())
        else:
            noise = torch.randn((SAMPLES, *t.shape), generator=generator, dtype=t.dtype)
            given.append((t.detach() + 0.3 * noise.to(t.device)).movedim(0, dim))
    return given, tuple(dims)


def each(function: Callable[..., Any], given: list[Tensor], dims: tuple[Any, ...]) -> list[Tensor]:
    """What vmap promises: the function of each sample, stacked."""
    found = []
    for b in range(SAMPLES):
        one = [t if d is None else t.select(d, b) for t, d in zip(given, dims, strict=True)]
        found.append(flat(function(*one)))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


WHICH = ("x", "h0", "x and h0", "weights", "one weight", "all")


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(
    ("cell", "case"),
    # Some magnify rounding over 60 steps.
    [(k, c) for k in [*CELLS, *SOME] for c in CASES if c.T < 60 or k in ("GRU", "SLSTM")],
    ids=str,
)
def test_outputs_and_gradients(cell: str, case: Case, which: str) -> None:
    check(data_of(cell, case), which)


def check(data: Data, which: str) -> None:
    """Outputs and gradients of samples that differ in some of their inputs."""
    inputs = data.inputs(torch.float64)
    states = set(range(1, 1 + len(data.h0)))
    weights = set(range(1 + len(states), len(inputs)))
    batched = {
        "x": {0},
        "h0": states or {0},
        "x and h0": {0} | states,
        "weights": weights,
        "one weight": {max(weights)},
        "all": {0} | states | weights,
    }[which]
    given, dims = of_samples(inputs, batched)
    every = tuple(range(len(inputs)))
    for run in (function_of, loss_of):
        of_kernel, of_reference = run(data), run(data.on("cpu"), reference.rnn)
        if run is loss_of:
            of_kernel, of_reference = grad(of_kernel, every), grad(of_reference, every)
        result = flat(vmap(of_kernel, dims)(*given))
        equal(result, each(of_reference, [t.cpu() for t in given], dims))


@pytest.mark.parametrize("cell", ["GRU", "LSTM_PROJ", "IndRNN", "Everything"])
def test_vmap_of_vmap(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=4, L=2))
    inputs = data.inputs(torch.float64)
    given, dims = of_samples(inputs, {0, 1})
    again, outer = of_samples(given, {0})
    every = tuple(range(len(inputs)))

    def inner(function: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        return lambda *tensors: each(function, list(tensors), dims)

    result = flat(vmap(vmap(grad(loss_of(data), every), dims), outer)(*again))
    equal(result, each(inner(grad(loss_of(data, reference.rnn), every)), again, outer))


@pytest.mark.parametrize("cell", ["LSTM", "IndRNN", "Everything"])
def test_gradients_of_samples_can_be_differentiated(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=4))
    inputs = data.inputs(torch.float64)
    given, dims = of_samples(inputs, {0})
    every = tuple(range(len(inputs)))

    def penalty(run: Run) -> Callable[..., Tensor]:
        gradient = grad(loss_of(data, run), every)

        def of_samples(*given: Tensor) -> Tensor:
            if run is ops.rnn:
                found = vmap(gradient, dims)(*given)
            else:
                found = each(gradient, list(given), dims)
            return torch.stack([g.square().flatten(1).sum(1).sqrt().sum() for g in found]).sum()

        return of_samples

    results = []
    for run in (ops.rnn, reference.rnn):
        leaves = [t.detach().requires_grad_() for t in given]
        of_autograd = torch.autograd.grad(penalty(run)(*leaves), leaves)
        v = tangents(given)
        forward = jvp(penalty(run), tuple(given), v)[1]
        results.append([*of_autograd, *grad(penalty(run), every)(*given), forward])
    equal(*results)


@pytest.mark.parametrize("cell", ["GRU", "RNN_RELU", "SLSTM", "Everything"])
def test_jacobians_and_hessians(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=4))
    inputs = tuple(t.detach() for t in data.inputs(torch.float64))
    every = (0, 1, len(inputs) - 1)
    results = []
    for run in (ops.rnn, reference.rnn):
        function, loss = function_of(data, run), loss_of(data, run)
        found = flat(jacrev(function, every)(*inputs)) + flat(jacfwd(function, every)(*inputs))
        found += flat(hessian(loss, every)(*inputs))
        found += flat(jacrev(jacrev(loss, 1), 0)(*inputs)) + flat(jacfwd(jacfwd(loss))(*inputs))
        of = torch.autograd.functional
        for options in ({"strategy": "reverse-mode"}, {"strategy": "forward-mode"}):
            found += flat(of.jacobian(function, inputs, vectorize=True, **options))
        results.append(found)
    equal(*results)
    with pytest.raises(NotImplementedError, match=r"use torch\.func\.hessian"):
        torch.autograd.functional.hessian(loss_of(data), inputs, vectorize=True)


def test_one_call_for_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each: of outputs, jacobians, and gradients of the weights."""
    data = data_of("GRU", Case(T=3, N=2, C=2, H=4, L=2))
    calls = []
    for name in ("rnn_train", "rnn_backward"):
        op = getattr(torch.ops.rnnext, name)
        counting = lambda *args, op=op, name=name: (calls.append(name), op(*args))[1]  # noqa: E731
        monkeypatch.setattr(torch.ops.rnnext, name, counting)
    inputs = data.inputs(torch.float64)
    given, dims = of_samples(inputs, {0, 1})
    vmap(grad(loss_of(data), tuple(range(len(inputs)))), dims)(*given)
    assert calls == ["rnn_train", "rnn_backward"]
    jacrev(lambda x: function_of(data)(x, *inputs[1:])[1])(inputs[0].detach())
    assert calls[2:] == ["rnn_train", "rnn_backward"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "SLSTM", "LSTMCell", "GRUCell", "RNNCell"])
def test_gradients_of_each_sample_of_a_layer(kind: str) -> None:
    torch.manual_seed(0)
    made = ZOO.get(kind) or getattr(rnnext, kind)
    module = made(3, 4, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64) if "Cell" in kind else None
    x = torch.randn(5, 6, 3, dtype=torch.float64) if x is None else x
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y = flat(functional_call(module, weights, (x,)))
        return torch.stack([t.sin().sum() for t in y]).sum()

    result = vmap(grad(loss), (None, 0))(weights, x)
    for k, row in enumerate(x):
        module.zero_grad()
        loss(dict(module.named_parameters()), row).backward()
        for name, w in module.named_parameters():
            assert error(result[name][k], w.grad) < 1e-12, name


@pytest.mark.parametrize("kind", ["LSTM", "SLSTM", "GRUCell"])
def test_an_ensemble(kind: str) -> None:
    torch.manual_seed(0)
    made = ZOO.get(kind) or getattr(rnnext, kind)
    models = [made(3, 4) for _ in range(3)]
    weights, buffers = stack_module_state(models)
    x = torch.randn(5, 3) if "Cell" in kind else torch.randn(6, 5, 3)
    results = flat(vmap(lambda w, b: functional_call(models[0], (w, b), (x,)))(weights, buffers))
    for k, model in enumerate(models):
        for together, alone in zip(results, flat(model(x)), strict=True):
            torch.testing.assert_close(together[k], alone)


def test_random_numbers() -> None:
    layer = rnnext.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 3).expand(4, 5, 3)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(x)
    same, different = (vmap(layer, randomness=r)(x)[0] for r in ("same", "different"))
    assert all(torch.equal(y, same[0]) for y in same)
    assert not any(torch.equal(a, b) for a, b in zip(different[1:], different, strict=False))


def test_samples_that_do_not_divide_the_batch() -> None:
    data = data_of("GRU", Case(T=3, N=4, C=2, H=3))
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    options = data.positional_options
    y, h_n, *saved = torch.ops.rnnext.rnn_train("GRU", x, h0, weights, *options)
    mask = [True] * (1 + len(h0) + len(weights))
    for samples in (3, -1, 8):
        with pytest.raises(RuntimeError, match=f"samples is {samples}, expected a divisor"):
            torch.ops.rnnext.rnn_backward(
                *([y, h_n], y, saved, "GRU", x, h0, weights, *options, mask, samples)
            )
    with pytest.raises(RuntimeError, match="can't be differentiated"):
        torch.ops.rnnext.rnn_backward(
            *([y, h_n], y, saved, "GRU", x.requires_grad_(), h0, weights, *options, mask, 2)
        )
