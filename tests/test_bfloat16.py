"""Products of operands rounded to bfloat16, with sums in float32: the op's `operand_dtype`."""

from typing import Any

import pytest
import torch
from cases import CELLS, Case, Data, error
from test_derivatives import data_of
from test_kernels import TILES, run_python
from torch import Tensor

from rnnext import ops, reference

EPS = 2**-8  # a rounding to bfloat16 is wrong by at most half of it
SOME = ("MinimalGated", "SLSTM", "RMSNormGRU", "IndRNN")
# Where a sum is near 0, rounding decides on which side of a kink it is.
KINKED = ("RNN_RELU", "IndRNN", "SLSTM")
CASES = (
    Case(T=5, N=3, C=4, H=17, L=2, D=2),  # an odd H: W_hh stays in float32
    Case(T=40, N=1, C=7, H=64),
    Case(T=12, N=20, C=33, H=130, L=2),
    Case(T=70, N=20, C=65, H=48, D=2, lengths=(*[70] * 3, *[20] * 10, *[3] * 7), h0=False),
    Case(T=6, N=5, C=0, H=10, bias=False),
    Case(T=3, N=70, C=5, H=1100),  # deeper than a block
    Case(T=1, N=9, C=3, H=2),
)


def with_bfloat16(cell: str, x: Tensor, h0: Any, weights: Any, **options: Any) -> list[Tensor]:
    """`ops.rnn`, with the argument that it sets where the results are bfloat16."""
    return list(torch.ops.rnnext.rnn(cell, x, h0, weights, *options.values(), torch.bfloat16))


@pytest.mark.parametrize("cell", [*CELLS, *SOME])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(cell: str, case: Case, poisoned_memory: None) -> None:
    data = data_of(cell, case)
    expected = data.run(reference.rnn, torch.float64)
    results = data.run(with_bfloat16, torch.float32)
    again = data.run(with_bfloat16, torch.float32)
    for name in data.names:
        assert torch.equal(results[name], again[name]), name
        bound = 50 * EPS if cell in KINKED and name.startswith("d") else 3 * EPS
        assert error(results[name], expected[name]) < bound, name


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SLSTM"])
@pytest.mark.parametrize("heads", [2, 3])
def test_heads(cell: str, heads: int) -> None:
    """Of 12 units in heads of 6, and of 4."""
    data = data_of(cell, Case(T=9, N=5, C=6, H=12, heads=heads))
    expected = data.run(reference.rnn, torch.float64)
    results = data.run(with_bfloat16, torch.float32)
    for name in data.names:
        assert error(results[name], expected[name]) < (50 if cell in KINKED else 5) * EPS, name


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "case", [Case(T=20, N=2, C=9, H=330), Case(T=20, N=40, C=9, H=64)], ids=str
)
def test_any_number_of_threads(cell: str, case: Case, threads: None) -> None:
    data = Data(cell, case)
    expected = data.run(reference.rnn, torch.float64)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results = data.run(with_bfloat16, torch.float32)
        for name in data.names:
            assert error(results[name], expected[name]) < 3 * EPS, (count, name)


def test_what_can_not_be_rounded_is_handed_on() -> None:
    """Infinities, NaN, and values that become infinite."""
    data = Data("RNN_RELU", Case(T=40, N=2, C=2, H=4, h0=False))
    w_ih, *others = [torch.full_like(w, 0.25).float() for w in data.weights]
    for value in (torch.inf, torch.nan, 3.4e38):
        x = torch.zeros(40, 2, 2)
        x[7, 1, 0] = value
        (y, h_n) = with_bfloat16("RNN_RELU", x, [], [w_ih, *others], **data.options)
        assert torch.isfinite(y[:, 0]).all()
        assert torch.isfinite(y[:7]).all()
        assert not torch.isfinite(y[7:, 1]).any()
        assert not torch.isfinite(h_n[0, 1]).any()


def test_every_tile() -> None:
    for case in TILES:
        data = Data("LSTM", case)
        expected, result = data.reference(), data.run(with_bfloat16, torch.float32)
        for name in data.names:
            assert error(result[name], expected[name]) < 10 * EPS, (case, name)


TRAINS = """
import torch, rnnext
layer = rnnext.LSTM(8, 16, dtype=torch.bfloat16)
layer(torch.randn(40, 4, 8).bfloat16())[0].float().sum().backward()
assert all(w.grad.isfinite().all() for w in layer.parameters())
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_where_the_instructions_are_missing(isa: str) -> None:
    result = run_python(TRAINS, RNNEXT_ISA=isa)
    if "RNNEXT_ISA" not in result.stderr:
        assert result.returncode == 0, result.stderr


def test_float64_is_not_rounded() -> None:
    data = Data("LSTM", Case(T=40, N=3, C=5, H=16))
    results, exact = data.run(with_bfloat16, torch.float64), data.run(ops.rnn, torch.float64)
    assert all(torch.equal(results[name], exact[name]) for name in data.names)


@pytest.mark.parametrize("cell", ["LSTM", "SLSTM"])
def test_opcheck(cell: str) -> None:
    data = data_of(cell, Case(T=9, N=5, C=3, H=6, L=2, D=2))
    x, h0, weights = data.split(data.inputs(torch.float32))
    arguments = (data.cell, x, h0, weights, *data.positional_options, torch.bfloat16)
    torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)
