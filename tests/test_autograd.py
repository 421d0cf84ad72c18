"""The op as a citizen of PyTorch: autograd's contract, fake kernels, and clear errors."""

import pytest
import torch
from cases import CELLS, Case, Data, error
from torch import Tensor

from rnnext import ops

cells = pytest.mark.parametrize("cell", CELLS)

SMALL = (
    Case(T=4, N=3, C=2, H=3),
    Case(T=3, N=2, C=3, H=2, L=2, D=2, bias=False),
    Case(T=4, N=3, C=2, H=3, D=2, lengths=(4, 2, 1), h0=False),
    Case(T=3, N=2, C=2, H=4, L=2, dropout=0.5),
)
small = pytest.mark.parametrize("case", SMALL, ids=str)


@cells
@small
def test_gradcheck(cell: str, case: Case, device: str) -> None:
    data = Data(cell, case, device=device)

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.rnn(cell, *data.split(list(inputs)), **data.options))

    fast = device != "cpu"  # where each of many small calls takes its time
    assert torch.autograd.gradcheck(function, data.inputs(torch.float64), fast_mode=fast)


def check_op(data: Data, dtype: torch.dtype) -> None:
    cell, case = data.cell, data.case
    inputs = data.inputs(dtype)
    x, h0, weights = data.split(inputs)
    arguments = (cell, x, h0, weights, *data.positional_options)
    # With a packed batch of unknown size the traced graph would need a size of its own.
    dynamic = () if case.lengths and not case.h0 else ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(
        torch.ops.rnnext.rnn.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", *dynamic),
    )
    detached = [t.detach() for t in inputs]
    x, h0, weights = data.split(detached)
    arguments = (cell, x, h0, weights, *data.positional_options)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.rnnext.rnn_train.default, arguments, test_utils=checks)

    y, *rest = torch.ops.rnnext.rnn_train(*arguments)
    saved = rest[len(data.grads) - 1 :]
    grads: list[Tensor | None] = [*data.output_grads(dtype)]
    mask = [True] * len(inputs)
    torch.library.opcheck(
        torch.ops.rnnext.rnn_backward.default,
        (grads, y, saved, *arguments, mask),
        test_utils=checks,
    )
    grads[0], mask[0], mask[-1] = None, False, False
    torch.library.opcheck(
        torch.ops.rnnext.rnn_backward.default,
        (grads, y, saved, *arguments, mask),
        test_utils=checks,
    )


@cells
@small
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(cell: str, case: Case, dtype: torch.dtype, device: str) -> None:
    check_op(Data(cell, case, device=device), dtype)


@cells
def test_a_second_backward_through_a_retained_graph(cell: str, device: str) -> None:
    data = Data(cell, Case(T=9, N=5, C=4, H=20, L=2, D=2, dropout=0.3), device=device)
    inputs = data.inputs(torch.float64)
    outputs = ops.rnn(cell, *data.split(inputs), **data.options)
    grads = data.output_grads(torch.float64)
    first = torch.autograd.grad(outputs, inputs, grads, retain_graph=True)
    second = torch.autograd.grad(outputs, inputs, grads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@cells
def test_a_gradient_for_one_output_only(cell: str, device: str) -> None:
    data = Data(cell, Case(T=9, N=5, C=4, H=20, L=2, D=2), device=device)
    grads = data.grads
    for k in range(len(grads)):
        data.grads = [g if i == k else torch.zeros_like(g) for i, g in enumerate(grads)]
        expected = data.reference()
        inputs = data.inputs(torch.float64)
        output = ops.rnn(cell, *data.split(inputs), **data.options)[k]
        result = torch.autograd.grad(output, inputs, data.output_grads(torch.float64)[k])
        for name, gradient in zip(data.names[len(grads) :], result, strict=True):
            assert error(gradient, expected[name]) < 1e-12, (k, name)


@cells
def test_a_gradient_of_one_input_only(cell: str, device: str) -> None:
    data = Data(cell, Case(T=7, N=5, C=4, H=20, L=3, D=2), device=device)
    expected = data.reference()
    for k, name in enumerate(data.names[len(data.grads) :]):
        inputs = [t.detach() for t in data.inputs(torch.float64)]
        inputs[k].requires_grad_()
        outputs = ops.rnn(cell, *data.split(inputs), **data.options)
        (result,) = torch.autograd.grad(outputs, inputs[k], data.output_grads(torch.float64))
        assert error(result, expected[name]) < 1e-12, name


def test_only_what_is_wanted_is_computed(device: str) -> None:
    data = Data("LSTM", Case(T=7, N=5, C=4, H=20, L=2), device=device)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float64)])
    arguments = ("LSTM", x, h0, weights, *data.positional_options)
    y, *rest = torch.ops.rnnext.rnn_train(*arguments)
    saved = rest[len(data.grads) - 1 :]
    # The first layer's record is poisoned: gradients of the second layer alone never read it.
    saved[0] = torch.full_like(saved[0], float("nan"))
    mask = [False] * (1 + len(h0) + 4) + [True] * 4
    grads = data.output_grads(torch.float64)
    result = torch.ops.rnnext.rnn_backward(grads, y, saved, *arguments, mask)
    expected = data.reference()
    assert len(result) == 4
    for name, gradient in zip(data.names[-4:], result, strict=True):
        assert error(gradient, expected[name]) < 1e-12, name


def test_outputs_share_no_memory_with_inputs_or_each_other(device: str) -> None:
    data = Data("LSTM", Case(T=1, N=3, C=4, H=5), device=device)
    inputs = [t.detach() for t in data.inputs(torch.float64)]
    outputs = ops.rnn("LSTM", *data.split(inputs), **data.options)
    memory = [t.untyped_storage().data_ptr() for t in (*inputs, *outputs)]
    assert len(set(memory)) == len(memory)


def test_saved_tensors_may_not_be_changed_before_backward(device: str) -> None:
    data = Data("LSTM", Case(T=3, N=3, C=4, H=5), device=device)
    inputs = data.inputs(torch.float64)
    outputs = ops.rnn("LSTM", *data.split(inputs), **data.options)
    outputs[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs[1].sum().backward()


@cells
@small
def test_gradgradcheck(cell: str, case: Case, device: str) -> None:
    data = Data(cell, case, device=device)

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.rnn(cell, *data.split(list(inputs)), **data.options))

    fast = device != "cpu"
    assert torch.autograd.gradgradcheck(function, data.inputs(torch.float64), fast_mode=fast)


def test_inference_mode_and_no_grad(device: str) -> None:
    data = Data("GRU", Case(T=3, N=2, C=2, H=3), device=device)
    inputs = data.inputs(torch.float64)
    with torch.inference_mode():
        y, _ = ops.rnn("GRU", *data.split(inputs), **data.options)
    assert y.is_inference()
    with torch.no_grad():
        again, _ = ops.rnn("GRU", *data.split(inputs), **data.options)
    assert again.grad_fn is None
    assert torch.equal(y, again)


@cells
def test_meta_tensors_give_shapes(cell: str) -> None:
    data = Data(cell, Case(T=5, N=3, C=4, H=7, L=2, D=2))
    real = ops.rnn(cell, *data.split(data.inputs(torch.float32)), **data.options)
    meta = [t.detach().to("meta") for t in data.inputs(torch.float32)]
    fake = ops.rnn(cell, *data.split(meta), **data.options)
    assert [t.shape for t in fake] == [t.shape for t in real]
    assert all(t.device.type == "meta" for t in fake)


def wrong(change: str) -> tuple:  # type: ignore[type-arg]
    """The arguments of a sound call, with one of them spoilt."""
    data = Data("LSTM", Case(T=5, N=3, C=4, H=7, L=2))
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float64)])
    options = {**data.options}
    cell = "LSTM"
    if change == "cell":
        cell = "LSTN"
    elif change == "no steps":
        x = x[:0]
    elif change == "two dimensions":
        x = x[0]
    elif change == "columns of x":
        x = torch.randn(5, 3, 6, dtype=torch.float64)
    elif change == "dtype of a weight":
        weights[5] = weights[5].float()
    elif change == "shape of a weight":
        weights[5] = weights[5][:-1]
    elif change == "number of weights":
        weights = weights[:-1]
    elif change == "number of states":
        h0 = h0[:1]
    elif change == "shape of a state":
        h0[1] = h0[1][:1]
    elif change == "dtype of a state":
        h0[0] = h0[0].float()
    elif change == "dropout":
        options["dropout"] = 1.5
    elif change == "seed":
        options["seed"] = torch.tensor([1, 2])
    elif change == "layers":
        options["num_layers"] = 0
    elif change == "batch_sizes grow":
        x, options["batch_sizes"] = x[:, 0], torch.tensor([1, 2, 2])
    elif change == "batch_sizes sum":
        x, options["batch_sizes"] = x[:, 0], torch.tensor([3, 3])
    elif change == "batch_sizes dtype":
        x, options["batch_sizes"] = x[:, 0], torch.tensor([3, 2], dtype=torch.int32)
    return cell, x, h0, weights, options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cell", "no cell is called 'LSTN'; there are LSTM, GRU, RNN_TANH, RNN_RELU"),
        ("no steps", "Expected sequence length to be larger than 0 in RNN"),
        ("two dimensions", r"x has 2 dimensions, expected 3"),
        ("columns of x", r"W_ih has shape \[28, 4\], expected \[28, 6\]"),
        ("dtype of a weight", "a weight is Float but x is Double"),
        ("shape of a weight", r"W_hh has shape \[27, 7\], expected \[28, 7\]"),
        ("number of weights", r"7 weights given, expected 4 \(without bias\) or 8"),
        ("number of states", "1 initial states given, but LSTM has 2"),
        ("shape of a state", r"an initial state has shape \[1, 3, 7\], expected \[2, 3, 7\]"),
        ("dtype of a state", "an initial state is Float but x is Double"),
        ("dropout", "dropout is 1.5, expected a probability"),
        ("seed", "seed must be an int64 CPU tensor with one element"),
        ("layers", "num_layers is 0"),
        ("batch_sizes grow", r"batch_sizes\[1\] is 2 after 1"),
        ("batch_sizes sum", "packed x has 5 rows, but batch_sizes add up to 6"),
        ("batch_sizes dtype", "batch_sizes must be a contiguous int64 CPU tensor"),
    ],
)
def test_bad_arguments_are_named(change: str, message: str) -> None:
    cell, x, h0, weights, options = wrong(change)
    kind = ValueError if change == "cell" else RuntimeError
    with pytest.raises(kind, match=message):
        ops.rnn(cell, x, h0, weights, **options)


def test_dtypes_without_kernels_run_the_reference_and_warn_once() -> None:
    ops._warn_of_reference.cache_clear()
    data = Data("GRU", Case(T=3, N=2, C=4, H=5))
    inputs = [t.detach() for t in data.inputs(torch.complex128)]
    with pytest.warns(UserWarning, match=r"no kernel for torch.complex128 on cpu"):
        y, _ = ops.rnn("GRU", *data.split(inputs), **data.options)
    assert y.dtype == torch.complex128
    assert error(y.real, data.reference()["y"]) < 1e-12
    again, _ = ops.rnn("GRU", *data.split(inputs), **data.options)
    assert torch.equal(y, again)
