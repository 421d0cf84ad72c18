"""Tests of the CPU's kernels, here of CUDA's step by step: a product, and a kernel for a stage."""

from __future__ import annotations

import pytest
import torch
from cases import CELLS, Case, Data, error
from test_autograd import (  # noqa: F401
    test_a_gradient_for_one_output_only,
    test_a_gradient_of_one_input_only,
    test_a_second_backward_through_a_retained_graph,
    test_gradcheck,
    test_only_what_is_wanted_is_computed,
    test_opcheck,
    test_outputs_share_no_memory_with_inputs_or_each_other,
)
from test_checkpoint_every import test_every_bit_is_the_same, test_one_gradient_only  # noqa: F401
from test_kernels import (  # noqa: F401
    test_a_repeat_has_the_same_bits,
    test_dropout_masks_are_those_of_the_reference,
    test_expanded_input_and_gradient,
    test_float32_is_within_1e5_or_twice_the_error_of_torch_nn,
    test_float64_equals_the_reference,
    test_inference_gives_the_bits_of_training,
    test_random_calls_equal_the_reference,
    test_strided_inputs,
)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "steps")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_operands_are_rounded(cell: str, dtype: torch.dtype, bound: float) -> None:
    data = Data(cell, Case(T=6, N=5, C=9, H=33, L=2, D=2))

    def function(cell, x, h0, weights, **options):  # type: ignore[no-untyped-def]
        return torch.ops.rnnext.rnn(cell, x, h0, weights, *options.values(), dtype)

    expected, result = data.reference(), data.run(function, torch.float32)
    for name in data.names:
        limit = 20 * bound if cell == "RNN_RELU" and name.startswith("d") else bound
        assert error(result[name], expected[name]) < limit, name


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("heads", [2, 3])
def test_heads(cell: str, heads: int) -> None:
    data = Data(cell, Case(T=5, N=4, C=6, H=12, heads=heads, lengths=(5, 5, 3, 1)))
    function = torch.ops.rnnext.rnn

    def run(cell, x, h0, weights, **options):  # type: ignore[no-untyped-def]
        return function(cell, x, h0, weights, *options.values())

    expected, result = data.reference(), data.run(run, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_gradients_of_each_sample(samples: int, heads: int) -> None:
    """Rows r, r + samples, .. are of one sample, whose gradients are those of its rows alone."""
    data = Data("GRU", Case(T=4, N=6, C=3, H=4, heads=heads))
    arguments = ("GRU", data.x, data.h0, data.weights, *data.positional_options)
    y, *saved = torch.ops.rnnext.rnn_train(*arguments)
    saved = saved[1:]
    mask = [True] * (2 + len(data.weights))
    grads = list(data.grads)
    found = torch.ops.rnnext.rnn_backward(grads, y, saved, *arguments, mask, samples)
    for sample in range(samples):
        rows = slice(sample, None, samples)
        alone = data.x[:, rows], [h[:, rows] for h in data.h0], data.weights
        one = ("GRU", *alone, *data.positional_options)
        y_one, _, *saved_one = torch.ops.rnnext.rnn_train(*one)
        given = [g[:, rows].contiguous() for g in grads]
        expected = torch.ops.rnnext.rnn_backward(given, y_one, saved_one, *one, mask, 0)
        for a, b in zip(found[2:], expected[2:], strict=True):
            assert error(a[sample], b) < 1e-12
