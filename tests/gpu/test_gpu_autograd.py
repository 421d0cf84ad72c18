"""Autograd's contract on the device: the CPU's own tests, and checkpoints on every path."""

import copy
import itertools

import pytest
import torch
from cases import CELLS, Case, Data, error
from gpu_cases import STACKS
from on_device import DEVICE, assert_same_bits, data_for, paths
from test_autograd import (  # noqa: F401 (collected here, for this device)
    test_a_gradient_for_one_output_only,
    test_a_gradient_of_one_input_only,
    test_a_second_backward_through_a_retained_graph,
    test_gradcheck,
    test_gradgradcheck,
    test_inference_mode_and_no_grad,
    test_only_what_is_wanted_is_computed,
    test_opcheck,
    test_outputs_share_no_memory_with_inputs_or_each_other,
    test_saved_tensors_may_not_be_changed_before_backward,
)
from test_checkpoint_every import PACKED, SMALL, SMALL_PACKED, STACK, TALL, checkpointed
from torch import Tensor

from rnnext import ops

every_cell = pytest.mark.parametrize("cell", CELLS)
DTYPES = (torch.float32, torch.bfloat16)


@paths
@every_cell
@pytest.mark.parametrize("case", [STACK, PACKED, TALL, SMALL, SMALL_PACKED], ids=str)
def test_checkpoints_change_no_bit(cell: str, case: Case, path: str, poisoned_memory: None) -> None:
    for dtype in DTYPES:
        data = data_for(cell, case)
        expected = data.run(ops.rnn, dtype)
        for every in (1, 12, case.T - 1, case.T + 3):
            assert_same_bits(data.run(checkpointed(every), dtype), expected)


@pytest.mark.parametrize("cell", ["LightGRU", "LayerNormLSTM", "Zoneout"])
@pytest.mark.parametrize("case", [STACK, PACKED], ids=str)
def test_checkpoints_of_written_cells(cell: str, case: Case) -> None:
    data = data_for(cell, case)
    expected = data.run(ops.rnn, torch.float32)
    for every in (5, 25):
        assert_same_bits(data.run(checkpointed(every), torch.float32), expected)


def close(result: Tensor, expected: Tensor) -> bool:
    """As near as two orders of a sum are in bfloat16, and in float32 much nearer."""
    return error(result, expected) < (0.01 if result.dtype == torch.bfloat16 else 1e-5)


@paths
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_for_some_inputs(cell: str, dtype: torch.dtype, path: str) -> None:
    data = Data(cell, STACKS[0], device=DEVICE)
    expected = [*data.run(ops.rnn, dtype).values()][len(data.grads) :]
    count = len(expected)
    for wanted in ([0], [1], [count - 1], [0, 3, 4], [*range(3, count)]):
        inputs = [t.requires_grad_(k in wanted) for k, t in enumerate(data.inputs(dtype))]
        outputs = ops.rnn(cell, *data.split(inputs), **data.options)
        some = [inputs[k] for k in wanted]
        found = torch.autograd.grad(outputs, some, data.output_grads(dtype))
        assert all(close(a, expected[k]) for a, k in zip(found, wanted, strict=True)), wanted


@paths
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_some_outputs(cell: str, dtype: torch.dtype, path: str) -> None:
    data = Data(cell, STACKS[0], device=DEVICE)
    every = range(len(data.grads))
    for given in (set(some) for n in every for some in itertools.combinations(every, n + 1)):
        inputs = data.inputs(dtype)
        outputs = ops.rnn(cell, *data.split(inputs), **data.options)
        toward = data.output_grads(dtype)
        some = [outputs[k] for k in given]
        found = torch.autograd.grad(some, inputs, [toward[k] for k in given])
        silenced = copy.copy(data)
        silenced.grads = [g if k in given else 0 * g for k, g in enumerate(data.grads)]
        expected = [*silenced.run(ops.rnn, dtype).values()][len(data.grads) :]
        assert all(map(close, found, expected)), given
