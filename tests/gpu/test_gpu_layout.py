"""How tensors lie in memory: strides, alignment, more elements than 32 bits count."""

from collections.abc import Callable

import pytest
import torch
from cases import Case, error, spread
from gpu_cases import STACKS
from on_device import DEVICE, MATHS, check, data_for, paths
from torch import Tensor

from rnnext import ops

cells = pytest.mark.parametrize("cell", ["LSTM", "GRU", "LSTM_PROJ", "LightGRU"])
maths = pytest.mark.parametrize("math", MATHS)
# Sizes that a kernel could read in vectors, if the data lay so.
CASES = (Case(T=6, N=8, C=64, H=64), Case(T=5, N=20, C=72, H=200), STACKS[0])


def shifted(t: Tensor) -> Tensor:
    """The same values, contiguous, but one element past where an allocation begins."""
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


def transposed(t: Tensor) -> Tensor:
    """The same values, the last axis not the one that is contiguous."""
    return t.mT.contiguous().mT if t.dim() > 1 else t


def given(convert: Callable[[Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    """`ops.rnn`, of inputs that are converted."""

    def run(cell, x, h0, weights, **options):  # type: ignore[no-untyped-def]
        h0, weights = list(map(convert, h0)), list(map(convert, weights))
        return ops.rnn(cell, convert(x), h0, weights, **options)

    return run


@paths
@maths
@cells
@pytest.mark.parametrize("convert", [spread, shifted, transposed])
def test_inputs_lie_in_any_way(
    cell: str, math: str, convert: Callable[[Tensor], Tensor], path: str
) -> None:
    for case in CASES:
        check(cell, case, math, given(convert))


@paths
@maths
@cells
@pytest.mark.parametrize("convert", [spread, shifted, transposed])
def test_gradients_of_outputs_lie_in_any_way(
    cell: str, math: str, convert: Callable[[Tensor], Tensor], path: str
) -> None:
    dtype, bound = MATHS[math].dtype, MATHS[math].bound
    data = data_for(cell, CASES[1])
    expected = data.run(ops.rnn, dtype)
    inputs = data.inputs(dtype)
    outputs = ops.rnn(data.cell, *data.split(inputs), **data.options)
    toward = list(map(convert, data.output_grads(dtype)))
    grads = torch.autograd.grad(outputs, inputs, toward)
    for name, gradient in zip(data.names[len(outputs) :], grads, strict=True):
        assert error(gradient, expected[name]) <= bound, name


@paths
def test_gradients_that_are_expanded(path: str) -> None:
    """As those of a sum are."""
    data = data_for("LSTM", CASES[1])
    for k, grad in enumerate(data.grads):
        data.grads[k] = grad.flatten()[0].expand(grad.shape)
    inputs = data.inputs(torch.float32)
    outputs = ops.rnn(data.cell, *data.split(inputs), **data.options)
    toward = [g.flatten()[0].float().to(DEVICE).expand(g.shape) for g in data.grads]
    assert not any(t.is_contiguous() for t in toward)
    grads = torch.autograd.grad(outputs, inputs, toward)
    expected = data.reference()
    for name, gradient in zip(data.names[len(outputs) :], grads, strict=True):
        assert error(gradient, expected[name]) < 1e-5, name


@paths
@pytest.mark.cuda_only
def test_more_elements_than_32_bits_count(path: str) -> None:
    """The last sequences of a batch whose records are that large are as if alone."""
    if torch.cuda.mem_get_info()[0] < 80 * 2**30:
        pytest.skip("needs 80 GiB of free memory")
    T, N, H = 65, 4100, 2048
    generator = torch.Generator(DEVICE).manual_seed(0)
    options = {"device": DEVICE, "dtype": torch.bfloat16, "generator": generator}
    x, dy = torch.randn(T, N, 8, **options), torch.randn(T, N, H, **options)
    weights = [torch.randn(4 * H, n, **options) / (2 * H**0.5) for n in (8, H)]

    def run(rows: slice) -> list[Tensor]:
        leaf = x[:, rows].clone().requires_grad_()
        y = ops.rnn("LSTM", leaf, [], [w.requires_grad_() for w in weights])[0]
        return [y.detach(), *torch.autograd.grad(y, leaf, dy[:, rows])]

    last = slice(N - 3, N)
    for whole, alone in zip(run(slice(0, N)), run(last), strict=True):
        assert error(whole[:, last].float(), alone.float()) < 1e-2
