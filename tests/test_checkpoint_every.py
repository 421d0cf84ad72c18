"""checkpoint_every: training keeps less and computes it again, and every bit is the same."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import CELLS, Case, Data
from test_derivatives import data_of, function_of, loss_of, second
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import grad, hessian, jacrev, jvp, vmap
from written_cells import ZOO

import rnnext
from rnnext import ops

# A time block has at most 768 rows: of 40 sequences 19 steps, of 9 of them 85, of 4 of them 192.
LENGTHS = tuple(sorted([70, 70, 61, 45, 30, 13, 12, 1] * 5, reverse=True))
STACK = Case(T=70, N=40, C=5, H=9, L=2, D=2, dropout=0.3)
PACKED = Case(T=70, N=40, C=5, H=9, L=3, D=2, h0=False, lengths=LENGTHS)
TALL = Case(T=200, N=9, C=3, H=33, bias=False)
BY_UNITS = Case(T=300, N=4, C=20, H=130, D=2)  # threads share the units of a step
SMALL = Case(T=5, N=3, C=2, H=3, L=2, D=2, dropout=0.5)
SMALL_PACKED = Case(T=4, N=3, C=2, H=3, D=2, lengths=(4, 2, 1))
EMPTY = Case(T=4, N=0, C=3, H=5)

every_cell = pytest.mark.parametrize("cell", CELLS)


def checkpointed(every: int) -> Callable[..., list[Tensor]]:
    return partial(ops.rnn, checkpoint_every=every)


def assert_same(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(result[name], value), name


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def check(data: Data, *counts: int, dtype: torch.dtype = torch.float32) -> None:
    expected = data.run(ops.rnn, dtype)
    for every in counts:
        assert_same(data.run(checkpointed(every), dtype), expected)


@every_cell
@pytest.mark.parametrize("case", [STACK, PACKED, TALL, SMALL, SMALL_PACKED, EMPTY], ids=str)
def test_every_bit_is_the_same(cell: str, case: Case, poisoned_memory: None) -> None:
    data = data_of(cell, case)
    check(data, 1, 5, 12, 25, case.T - 1, case.T, case.T + 3, 2**62)
    check(data, 17, dtype=torch.float64)


@pytest.mark.parametrize("cell", ZOO)
def test_written_cells(cell: str, poisoned_memory: None) -> None:
    lengths = (31, 31, 25, 24, 12, 3, 1, 1) * 5
    for packed in ((), tuple(sorted(lengths, reverse=True))):
        check(data_of(cell, Case(T=31, N=40, C=3, H=6, L=2, D=2, lengths=packed)), 1, 10, 24)


@pytest.mark.parametrize("cell", ["GRU", "SLSTM"])
def test_heads(cell: str) -> None:
    check(data_of(cell, Case(T=31, N=40, C=3, H=12, D=2, heads=3)), 7)


@pytest.mark.parametrize("cell", ["LSTM", "LSTM_PROJ", "Everything", "Spread"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads(cell: str, count: int, threads: None, poisoned_memory: None) -> None:
    torch.set_num_threads(count)
    for case in (BY_UNITS, STACK):
        check(data_of(cell, case), 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    check(Data("LSTM", STACK), 20, dtype=dtype)


def test_one_gradient_only() -> None:
    data = data_of("LSTM", PACKED)
    for k in range(len(data.names) - len(data.grads)):
        found = []
        for run in (ops.rnn, checkpointed(20)):
            inputs = [t.detach() for t in data.inputs(torch.float32)]
            inputs[k].requires_grad_()
            y = function_of(data, run)(*inputs)[0]
            found += torch.autograd.grad(y, inputs[k], torch.ones_like(y))
        assert torch.equal(*found)


def test_a_second_backward_through_a_retained_graph() -> None:
    data = data_of("GRU", STACK)
    inputs = data.inputs(torch.float32)
    outputs = function_of(data, checkpointed(20))(*inputs)
    given = [g.float() for g in data.grads]
    first = torch.autograd.grad(outputs, inputs, given, retain_graph=True)
    again = torch.autograd.grad(outputs, inputs, given)
    assert all(map(torch.equal, first, again))


def saved_shapes(run: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Of the tensors that autograd keeps."""
    shapes = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return shapes


@pytest.mark.parametrize("case", [STACK, PACKED], ids=str)
def test_what_is_kept(case: Case) -> None:
    data = data_of("LSTM", case)
    rows, states = len(data.x.flatten(0, -2)), 2 * case.H
    inputs = data.inputs(torch.float32)
    shapes = {
        every: saved_shapes(lambda every=every: function_of(data, checkpointed(every))(*inputs))
        for every in (0, 20, 1000)
    }
    assert shapes[0].count((2, rows, 5 * case.H)) == case.L
    for every, segments in ((20, 4), (1000, 1)):
        expected = [s for s in shapes[0] if s != (2, rows, 5 * case.H)]
        expected += [(2, segments, case.N, states)] * case.L
        assert sorted(shapes[every]) == sorted(expected)


def test_inference_keeps_nothing() -> None:
    data = data_of("LSTM", TALL)
    inputs = [t.detach() for t in data.inputs(torch.float32)]
    results = [function_of(data, run)(*inputs) for run in (ops.rnn, checkpointed(60))]
    assert all(map(torch.equal, *results))
    assert saved_shapes(lambda: function_of(data, checkpointed(60))(*inputs)) == []


@pytest.mark.parametrize("cell", [*CELLS, "Everything"])
@pytest.mark.parametrize("case", [SMALL, SMALL_PACKED], ids=str)
def test_gradcheck(cell: str, case: Case) -> None:
    data = data_of(cell, case)
    function = function_of(data, checkpointed(2))
    assert torch.autograd.gradcheck(function, data.inputs(torch.float64), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, data.inputs(torch.float64), fast_mode=True)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "Everything"])
def test_opcheck(cell: str) -> None:
    for case in (SMALL, SMALL_PACKED):
        data = data_of(cell, case)
        inputs = data.inputs(torch.float32)
        options = (*data.positional_options, None, 2)
        arguments = (data.cell, *data.split(inputs), *options)
        torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)
        arguments = (data.cell, *data.split([t.detach() for t in inputs]), *options)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.rnnext.rnn_train.default, arguments, test_utils=checks)
        y, *rest = torch.ops.rnnext.rnn_train(*arguments)
        saved, grads = rest[len(data.grads) - 1 :], [g.float() for g in data.grads]
        mask = [True] * len(inputs)
        torch.library.opcheck(
            torch.ops.rnnext.rnn_backward.default,
            (grads, y, saved, *arguments[:-2], mask, 0, *options[-2:]),
            test_utils=checks,
        )


def test_what_another_interval_kept_is_refused() -> None:
    data = data_of("GRU", TALL)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    options, mask = data.positional_options, [True] * (1 + len(h0) + len(weights))
    y, h_n, *saved = torch.ops.rnnext.rnn_train("GRU", x, h0, weights, *options, None, 50)
    for every in (0, 20):
        with pytest.raises(RuntimeError, match="what a layer saved has shape"):
            torch.ops.rnnext.rnn_backward(
                *([y, h_n], y, saved, "GRU", x, h0, weights, *options, mask, 0, None, every)
            )


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SLSTM", "Everything"])
@pytest.mark.parametrize(
    "case",
    [Case(T=31, N=40, C=3, H=6, L=2, D=2, dropout=0.3), PACKED],
    ids=str,
)
def test_second_derivatives(cell: str, case: Case, poisoned_memory: None) -> None:
    data = data_of(cell, case)
    expected = second(data, ops.rnn, torch.float32)
    for every in (10, 13):
        assert_same(second(data, checkpointed(every), torch.float32), expected)


# More than eight samples have longer time blocks in the backward.
@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize(
    "case", [Case(T=400, N=1, C=3, H=5, D=2), Case(T=150, N=3, C=3, H=5, lengths=(150, 99, 7))]
)
def test_samples(case: Case, count: int) -> None:
    data = data_of("LSTM", case)
    inputs = [t.detach() for t in data.inputs(torch.float32)]
    x = torch.stack([inputs[0] * (k + 1) / count for k in range(count)])
    every_input = tuple(range(len(inputs)))

    def gradients(run: Callable[..., list[Tensor]]) -> list[Tensor]:
        def loss(*inputs: Tensor) -> Tensor:
            return torch.stack([o.sin().sum() for o in function_of(data, run)(*inputs)]).sum()

        return flat(vmap(grad(loss, every_input), (0, *[None] * (len(inputs) - 1)))(x, *inputs[1:]))

    expected = gradients(ops.rnn)
    for every in (7, 60, 130):
        assert all(map(torch.equal, gradients(checkpointed(every)), expected)), every


@pytest.mark.parametrize("cell", ["LSTM", "Everything"])
def test_transforms(cell: str) -> None:
    data = data_of(cell, Case(T=5, N=2, C=2, H=3, L=2))
    data.seed = None
    inputs = tuple(t.detach() for t in data.inputs(torch.float64))
    results = []
    for run in (ops.rnn, checkpointed(2)):
        function, loss = function_of(data, run), loss_of(data, run)
        found = [jvp(loss, inputs, inputs)[1], *flat(jacrev(function, (0, 1, 4))(*inputs))]
        found += flat(hessian(loss, (0, 4))(*inputs))
        of = torch.autograd.functional
        found += flat(of.jacobian(function, inputs, vectorize=True))
        results.append(found)
    assert all(torch.allclose(a, b, 1e-12, 1e-13) for a, b in zip(*results, strict=True))


def test_jacobians_of_several_blocks() -> None:
    """The forward is of one sample, the backward of all rows of the jacobian at once."""
    data = data_of("GRU", Case(T=150, N=4, C=2, H=3))
    inputs = [t.detach() for t in data.inputs(torch.float64)]
    found = []
    for run in (ops.rnn, checkpointed(40)):

        def last(x: Tensor, run: Callable[..., list[Tensor]] = run) -> Tensor:
            return function_of(data, run)(x, *inputs[1:])[1]

        found.append(jacrev(last)(inputs[0]))
    assert torch.allclose(*found, 1e-12, 1e-14)


LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": partial(rnnext.LSTM, 6, 5, 2, bidirectional=True, dropout=0.5),
    "LSTM_PROJ": partial(rnnext.LSTM, 6, 5, proj_size=2, batch_first=True),
    "GRU": partial(rnnext.GRU, 6, 5),
    "RNN": partial(rnnext.RNN, 6, 5, nonlinearity="relu"),
    "SLSTM": partial(ZOO["SLSTM"], 6, 5, 2),
    "Everything": partial(ZOO["Everything"], 6, 5, out_size=4, key_size=2),
}
layers = pytest.mark.parametrize("name", LAYERS)


def everything(module: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """The outputs and all gradients."""
    torch.manual_seed(5)
    x = x.detach().requires_grad_()
    outputs = flat(module(x, **options))
    loss = torch.stack([o.sin().sum() for o in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, [x, *module.parameters()])]


@layers
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    plain, layer = LAYERS[name](), LAYERS[name](checkpoint_every=10)
    assert list(layer.state_dict()) == list(plain.state_dict())
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(70, 40, 6)
    n, t = (70, 40) if layer.batch_first else (40, 70)
    lengths = torch.arange(n) % t + 1
    lengths[7] = t
    for given, options in ((x, {}), (x, {"lengths": lengths}), (x[0], {})):
        expected = everything(plain, given, **options)
        assert all(map(torch.equal, everything(layer, given, **options), expected))
    assert "checkpoint_every=10" in repr(layer)
    assert "checkpoint_every" not in repr(plain)
    assert copy.deepcopy(layer).checkpoint_every == 10
    if name in ("LSTM", "GRU", "RNN"):
        assert pickle.loads(pickle.dumps(layer)).checkpoint_every == 10


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SLSTM"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](checkpoint_every=4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for t, n in ((13, 7), (9, 12)):
        x, lengths = torch.randn(t, n, 6), torch.arange(n) % t + 1
        for options in ({}, {"lengths": lengths}):
            expected = everything(layer, x, **options)
            assert all(map(torch.equal, everything(compiled, x, **options), expected))
    torch._dynamo.reset()


def test_export() -> None:
    layer = rnnext.GRU(6, 5, 2, checkpoint_every=4)
    shapes = {0: Dim("t", min=2, max=99), 1: Dim("n", min=2, max=99)}
    program = export(layer, (torch.randn(11, 3, 6),), dynamic_shapes=(shapes,), strict=False)
    x = torch.randn(17, 4, 6)
    assert all(map(torch.equal, program.module()(x), layer(x)))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SLSTM", "RNN"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "checkpoint_every must be a number of steps, or 0 or None .* got: -1"),
        (True, TypeError, "checkpoint_every should be of type int, or None, got: bool"),
        (2.0, TypeError, "checkpoint_every should be of type int, or None, got: float"),
        ("2", TypeError, "checkpoint_every should be of type int, or None, got: str"),
    ],
)
def test_errors(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LAYERS[name](checkpoint_every=value)


def test_errors_of_the_op() -> None:
    data = data_of("GRU", SMALL)
    arguments = (data.cell, *data.split(data.inputs(torch.float32)))
    with pytest.raises(RuntimeError, match="checkpoint_every is -2, expected a number of steps"):
        ops.rnn(*arguments, **data.options, checkpoint_every=-2)
    with pytest.raises(RuntimeError, match="'int' for argument 'checkpoint_every'"):
        ops.rnn(*arguments, **data.options, checkpoint_every=0.5)  # type: ignore[arg-type]


def test_nothing_else_is_called_so() -> None:
    with pytest.raises(ValueError, match="the name 'checkpoint_every' is taken"):
        type("Bad", (rnnext.Recurrent,), {"gates": ("checkpoint_every",), "step": lambda a: a})


def test_swapped_and_older_layers() -> None:
    torch.manual_seed(0)
    layer = rnnext.swap(nn.LSTM(6, 5, 2))
    assert layer.checkpoint_every is None
    x = torch.randn(70, 40, 6)
    expected = everything(layer, x)
    layer.checkpoint_every = 20
    assert all(map(torch.equal, everything(layer, x), expected))
    assert "checkpoint_every=20" in repr(layer)
    theirs = rnnext.unswap(layer)
    assert type(theirs) is nn.LSTM
    assert repr(theirs) == "LSTM(6, 5, num_layers=2)"
    assert rnnext.swap(theirs).checkpoint_every == 20
    older = rnnext.GRU(6, 5)
    del older.__dict__["checkpoint_every"]
    assert pickle.loads(pickle.dumps(older))(x)[0].shape == (70, 40, 5)
