"""The built-in cells on the device: every output and gradient, by name, against float64."""

import itertools

import pytest
import torch
from cases import CASES, CELLS, DROPOUT, FEW, LARGE, PACKED, Case, Data, error
from gpu_cases import SIZES, STACKS
from hypothesis import given, settings
from on_device import DEVICE, LOW, MATHS, PATHS, WIDE, check, paths
from test_kernels import (  # noqa: F401 (collected here, for this device)
    calls,
    test_dropout_masks_are_those_of_the_reference,
    test_expanded_input_and_gradient,
    test_inference_gives_the_bits_of_training,
    test_strided_inputs,
)

from rnnext import ops


def grid(*sets: tuple[tuple[Case, ...], tuple[str, ...]]) -> pytest.MarkDecorator:
    """Cells, cases and maths with every path. What shares an expected result is side by side."""
    found = [
        pytest.param(cell, case, math, path, id=f"{cell}-{case}-{math}-{path}")
        for cases, maths in sets
        for case, cell, math, path in itertools.product(cases, CELLS, maths, PATHS)
    ]
    names = ("cell", "case", "math", "path")
    return pytest.mark.parametrize(names, found, indirect=["path"])


@grid((SIZES, tuple(MATHS)))
def test_sizes(cell: str, case: Case, math: str, path: str) -> None:
    check(cell, case, math)


@grid((CASES, WIDE), (STACKS, tuple(MATHS)), ((LARGE, PACKED, DROPOUT, FEW), LOW))
def test_layers_directions_packed_rows_and_dropout(
    cell: str, case: Case, math: str, path: str, poisoned_blocks: None
) -> None:
    check(cell, case, math)


@paths
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS)
def test_uninitialised_memory_is_never_read(
    cell: str, math: str, path: str, poisoned_memory: None
) -> None:
    for case in (STACKS[2], Case(T=9, N=7, C=5, H=64)):
        check(cell, case, math)


@paths
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_one_sequence_leaves_the_others_alone(cell: str, path: str) -> None:
    for case in (Case(T=5, N=7, C=6, H=64), Case(T=5, N=7, C=6, H=333)):
        data = Data(cell, case, device=DEVICE)
        clean = data.run(ops.rnn, torch.float32)
        data.x[2, 5, 2] = float("nan")
        dirty = data.run(ops.rnn, torch.float32)
        others = [n for n in range(7) if n != 5]
        assert torch.equal(clean["y"][:, others], dirty["y"][:, others])
        assert torch.equal(clean["dx"][:, others], dirty["dx"][:, others])
        assert torch.isnan(dirty["y"][2:, 5]).any()


@paths
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inference_has_the_bits_of_training_on_every_path(
    cell: str, dtype: torch.dtype, path: str
) -> None:
    for case in (LARGE, PACKED, SIZES[6]):
        data = Data(cell, case, device=DEVICE)
        inputs = data.inputs(dtype)
        training = ops.rnn(cell, *data.split(inputs), **data.options)
        with torch.inference_mode():
            inference = ops.rnn(cell, *data.split(inputs), **data.options)
        assert all(torch.equal(a, b) for a, b in zip(training, inference, strict=True))


@settings(max_examples=60, deadline=None)
@given(call=calls())
def test_random_calls_equal_the_reference(call: tuple[str, Case]) -> None:
    data = Data(*call, device=DEVICE)
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-10, name
