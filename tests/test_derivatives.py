"""First derivatives by differences, second derivatives against the reference, torch.func."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import CELLS, Case, Data, data_of, error
from test_autograd import check_op
from torch import Tensor
from torch.func import functional_call, grad, jvp
from written_cells import ZOO

import rnnext
from rnnext import ops, reference

# Not all of them: compiling a cell's derivative takes seconds.
TWICE = ("MinimalGated", "IndRNN", "RMSNormGRU", "SLSTM", "Spread", "Everything")
zoo = pytest.mark.parametrize("cell", ZOO)
twice = pytest.mark.parametrize("cell", [*CELLS, *TWICE])
small = pytest.mark.parametrize(
    "case",
    [
        Case(T=3, N=2, C=2, H=4, L=2, D=2, bias=False, dropout=0.5),
        Case(T=4, N=3, C=2, H=3, D=2, lengths=(4, 2, 1), h0=False),
    ],
    ids=str,
)
Run = Callable[..., list[Tensor]]


def function_of(data: Data, run: Run = ops.rnn) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *inputs: tuple(run(data.cell, *data.split(list(inputs)), **data.options))


def loss_of(data: Data, run: Run = ops.rnn) -> Callable[..., Tensor]:
    """A number made of all outputs."""
    function, grads = function_of(data, run), data.output_grads(torch.float64)
    return lambda *inputs: torch.stack(
        [(o.sin() * g).sum() for o, g in zip(function(*inputs), grads, strict=True)]
    ).sum()


def tangents(inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs)
    return tuple(v.to(t.device) for v, t in zip(drawn, inputs, strict=True))


def equal(results: Any, expected: Any, bound: float = 1e-11) -> None:
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert error(a, b) < bound, k


@zoo
@small
def test_gradcheck(cell: str, case: Case) -> None:
    data = data_of(cell, case)
    assert torch.autograd.gradcheck(function_of(data), data.inputs(torch.float64))


@pytest.mark.parametrize("cell", TWICE)
@small
def test_gradgradcheck(cell: str, case: Case) -> None:
    data = data_of(cell, case)
    inputs = data.inputs(torch.float64)
    assert torch.autograd.gradgradcheck(function_of(data), inputs, fast_mode=case.L > 1)


@pytest.mark.parametrize("cell", ["SLSTM", "Everything", "IndRNN"])
@small
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(cell: str, case: Case, dtype: torch.dtype) -> None:
    check_op(data_of(cell, case), dtype)


def second(data: Data, run: Run, dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradients that reach inputs and output gradients from a sum over all gradients."""
    inputs = data.inputs(dtype)
    grads = [g.detach().requires_grad_() for g in data.output_grads(dtype)]
    outputs = function_of(data, run)(*inputs)
    first = torch.autograd.grad(outputs, inputs, grads, create_graph=True, allow_unused=True)
    pairs = zip(first, tangents(data.inputs(torch.float64)), strict=True)
    total = sum((f * v.to(dtype)).sum() for f, v in pairs if f is not None)
    found = torch.autograd.grad(total, [*grads, *inputs], materialize_grads=True)
    return dict(zip(data.names, found, strict=True))


@twice
@pytest.mark.parametrize(
    "case",
    [
        Case(T=5, N=3, C=4, H=17, L=2, D=2, dropout=0.3),
        Case(T=4, N=2, C=5, H=330),
        Case(T=9, N=70, C=2, H=9, bias=False),
        Case(T=6, N=4, C=0, H=7, L=2, D=2, lengths=(6, 6, 3, 1), h0=False),
    ],
    ids=str,
)
def test_second_derivatives_equal_the_references(
    cell: str, case: Case, poisoned_memory: None
) -> None:
    data = data_of(cell, case)
    expected = second(data, reference.rnn, torch.float64)
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        result = second(data, ops.rnn, dtype)
        for name in data.names:
            assert error(result[name], expected[name]) < bound, (dtype, name)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "Everything", "SLSTM", "Spread"])
@pytest.mark.parametrize("count", [1, 3])
def test_second_derivatives_with_any_number_of_threads(
    cell: str, count: int, threads: None
) -> None:
    torch.set_num_threads(count)
    data = data_of(cell, Case(T=4, N=2, C=5, H=330))
    expected = second(data, reference.rnn, torch.float64)
    result = second(data, ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-11, name


@pytest.mark.parametrize("cell", ["GRU", "SLSTM"])
def test_second_derivatives_with_heads(cell: str) -> None:
    data = data_of("SLSTM" if cell == "SLSTM" else cell, Case(T=4, N=3, C=3, H=12, D=2, heads=3))
    expected = second(data, reference.rnn, torch.float64)
    result = second(data, ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-11, name


@twice
def test_second_derivatives_where_inputs_are_made_of_each_other(cell: str) -> None:
    """No gradient flows twice: from one input into the one that it was made of."""
    data = data_of(cell, Case(T=3, N=2, C=3, H=5))

    def run(function: Run) -> list[Tensor]:
        x, h0, weights = data.split(data.inputs(torch.float64))
        leaves = [x, *weights]
        made_h0 = [torch.sin(h * x.sum()) for h in h0]
        made = [w * (1 + 0.1 * weights[0].mean()) for w in weights]
        y, *finals = function(data.cell, x * made[0].sum(), made_h0, made, **data.options)
        total = y.square().sum() + sum(f.sin().sum() for f in finals)
        first = torch.autograd.grad(total, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(f.square().sum() for f in first), leaves))

    equal(run(ops.rnn), run(reference.rnn))


@pytest.mark.parametrize("cell", ["LSTM", "LSTM_PROJ", "Everything"])
def test_second_derivatives_of_some_inputs_only(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=3, H=5, L=2))
    count = 1 + len(data.h0) + len(data.weights)
    for wanted in ([0], [1], [count - 1], [0, count - 2]):
        results = []
        for run in (ops.rnn, reference.rnn):
            inputs = [
                t.detach().requires_grad_(k in wanted)
                for k, t in enumerate(data.inputs(torch.float64))
            ]
            some = [inputs[k] for k in wanted]
            first = torch.autograd.grad(loss_of(data, run)(*inputs), some, create_graph=True)
            results.append(torch.autograd.grad(sum(f.square().sum() for f in first), some))
        equal(*results)


def transformed(data: Data, run: Run) -> list[Tensor]:
    """What the transforms of torch.func make of a call."""
    inputs = tuple(t.detach() for t in data.inputs(torch.float64))
    v, every = tangents(inputs), tuple(range(len(inputs)))
    loss = loss_of(data, run)
    gradient = grad(loss, every)
    values, moved = jvp(function_of(data, run), inputs, v)
    again, forward_over_reverse = jvp(gradient, inputs, v)
    reverse_over_forward = grad(lambda *p: jvp(loss, p, v)[1], every)(*inputs)
    reverse_over_reverse = grad(lambda *p: sum(g.sin().sum() for g in gradient(*p)), every)(*inputs)
    return [
        *(*values, *moved, *gradient(*inputs), *again),
        *(*forward_over_reverse, *reverse_over_forward, *reverse_over_reverse),
    ]


@twice
def test_transforms_of_torch_func(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=3, H=5, L=2, D=2, dropout=0.3))
    equal(transformed(data, ops.rnn), transformed(data, reference.rnn))


def nested(loss: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Second and third derivatives with every mode inside every other."""
    u, v = tangents([x, x])

    def forward(function: Callable[[Tensor], Tensor], v: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: jvp(function, (x,), (v,))[1]

    def squared(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x).square().sum()

    gradient, twice = grad(loss), forward(forward(loss, v), u)
    third = grad(squared(grad(squared(gradient))))
    return [
        *(twice(x), grad(twice)(x), forward(twice, v)(x), third(x)),
        forward(grad(squared(gradient)), v)(x),
        grad(squared(forward(gradient, v)))(x),
    ]


@pytest.mark.parametrize("cell", ["GRU", "SLSTM", "Everything"])
@pytest.mark.parametrize("of", ["x", "h0", "weights"])
def test_derivatives_of_derivatives_of_derivatives(cell: str, of: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=3))
    inputs = [t.detach() for t in data.inputs(torch.float64)]
    k = {"x": 0, "h0": 1, "weights": 1 + len(data.h0)}[of]

    def loss(run: Run) -> Callable[[Tensor], Tensor]:
        return lambda value: loss_of(data, run)(*inputs[:k], value, *inputs[k + 1 :])

    equal(nested(loss(ops.rnn), inputs[k]), nested(loss(reference.rnn), inputs[k]), 1e-9)


@pytest.mark.parametrize("cell", ["GRU", "Everything"])
def test_dual_numbers(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=3, H=5))
    v = tangents(data.inputs(torch.float64))
    results: list[list[Tensor]] = []
    for run in (ops.rnn, reference.rnn):
        inputs = data.inputs(torch.float64)
        found: list[Tensor] = []
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, v, strict=True)]
            loss = loss_of(data, run)(*duals)
            moved = forward_ad.unpack_dual(loss).tangent
            found += [loss.detach(), moved.detach()]
            found += torch.autograd.grad(moved, inputs, retain_graph=True)
            for gradient in torch.autograd.grad(loss, inputs):
                found.append(forward_ad.unpack_dual(gradient).tangent)
            only_x = [duals[0], *inputs[1:]]
            found.append(forward_ad.unpack_dual(function_of(data, run)(*only_x)[0]).tangent)
        results.append(found)
    equal(*results)


@pytest.mark.parametrize("cell", ["RNN_TANH", "IndRNN"])
def test_functions_of_autograd_functional(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=3))
    inputs = tuple(data.inputs(torch.float64))
    for of in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        ours, theirs = (of(loss_of(data, run), inputs) for run in (ops.rnn, reference.rnn))
        for a, b in zip(ours, theirs, strict=True):
            equal([a] if isinstance(a, Tensor) else a, [b] if isinstance(b, Tensor) else b)
    v = tangents(inputs)
    for along in (torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        ours, theirs = (along(loss_of(data, run), inputs, v)[1] for run in (ops.rnn, reference.rnn))
        equal(ours, theirs)


@pytest.mark.parametrize("cell", ["LSTM", "Everything"])
def test_third_derivatives_of_autograd_equal_the_references(cell: str) -> None:
    data = data_of(cell, Case(T=3, N=2, C=2, H=3, L=2))
    results = []
    for run in (ops.rnn, reference.rnn):
        inputs = data.inputs(torch.float64)
        value = loss_of(data, run)(*inputs)
        for _ in range(3):
            gradients = torch.autograd.grad(
                value, inputs, create_graph=True, materialize_grads=True
            )
            value = sum(g.sin().sum() for g in gradients)
        results.append([g.detach() for g in gradients])
    equal(*results, 1e-9)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "SLSTM", "Everything"])
def test_a_step_with_a_gradient_penalty(kind: str) -> None:
    """A layer in training: the gradient of |dy/dx|^2, as of the same layer on the reference."""
    torch.manual_seed(0)
    if kind in ZOO:
        options = {"out_size": 3, "key_size": 2} if kind == "Everything" else {}
        layer = ZOO[kind](3, 6, num_layers=2, **options).double()
        cell: Any = layer.declaration
        sizes = list(options.values())
    else:
        layer = getattr(rnnext, kind)(3, 6, num_layers=2).double()
        cell, sizes = {"RNN": "RNN_TANH"}.get(kind, kind), []
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = list(layer.parameters())

    def on_reference(x: Tensor) -> Tensor:
        seed = (
            torch.randint(2**63 - 1, (1,)) if cell != kind and kind in ZOO and cell.noise else None
        )
        return reference.rnn(cell, x, [], weights, seed=seed, num_layers=2, sizes=sizes)[0]

    results = []
    for run in (lambda x: layer(x)[0], on_reference):
        torch.manual_seed(5)
        y = run(x)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = y.square().mean() + (gradient.norm(dim=-1) - 1).square().mean()
        results.append(torch.autograd.grad(loss, weights, materialize_grads=True))
    equal(*results)
    stateless = functional_call(layer.eval(), dict(layer.named_parameters()), (x,))[0]
    assert torch.equal(stateless, layer(x)[0])


def test_of_a_cell_whose_class_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that runs an exported program: the compiled cell is all that there is."""
    data = data_of("IndRNN", Case(T=3, N=2, C=2, H=3))
    monkeypatch.delitem(reference.CELLS, data.cell)
    inputs = data.inputs(torch.float64)
    first = torch.autograd.grad(loss_of(data)(*inputs), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="import it, and make a layer of it"):
        torch.autograd.grad(sum(f.square().sum() for f in first), inputs)
