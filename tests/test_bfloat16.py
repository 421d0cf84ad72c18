"""Products of operands rounded to bfloat16, with sums in float32: the op's `operand_dtype`."""

from typing import Any

import pytest
import torch
from cases import CELLS, PACKED, Case, Data, error
from test_derivatives import data_of
from test_kernels import SHALLOW, TILES, run_python
from torch import Tensor

from rnnext import ops, reference

EPS = 2**-8  # a rounding to bfloat16 is wrong by at most half of it
SOME = ("MinimalGated", "SLSTM", "RMSNormGRU", "IndRNN")
# Where a sum is near 0, rounding decides on which side of a kink it is.
KINKED = ("RNN_RELU", "IndRNN", "SLSTM")
CASES = (
    # An odd H: W_hh stays in float32 where a part of it would begin at an odd row.
    Case(T=5, N=3, C=4, H=17, L=2, D=2),
    Case(T=23, N=5, C=9, H=33, lengths=(23, 23, 9, 9, 2)),
    Case(T=40, N=1, C=7, H=64),
    Case(T=12, N=20, C=33, H=130, L=2),
    Case(T=70, N=20, C=65, H=48, D=2, lengths=(*[70] * 3, *[20] * 10, *[3] * 7), h0=False),
    Case(T=6, N=5, C=0, H=10, bias=False),
    Case(T=3, N=70, C=5, H=1100),  # deeper than a block
    Case(T=1, N=9, C=3, H=2),
    Case(T=1, N=27, C=5, H=34, D=2, h0=False),
    Case(T=3, N=9, C=5, H=40, D=2, h0=False),  # the first rows of the second step share a pair
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


def kept(cell: str, x: Tensor, h0: Any, weights: Any, **options: Any) -> list[Tensor]:
    """The op, of weights that are kept in bfloat16."""
    return with_bfloat16(cell, x, h0, [w.bfloat16() for w in weights], **options)


KEPT = (
    *CASES,
    Case(T=1, N=1, C=7, H=1),
    Case(T=1, N=1, C=33, H=65),
    Case(T=2, N=3, C=1, H=5, L=2, D=2),
    Case(T=4, N=0, C=3, H=5),
    Case(T=300, N=4, C=5, H=22),  # two time blocks
    *SHALLOW,
)


@pytest.mark.parametrize("cell", [*CELLS, *SOME])
@pytest.mark.parametrize("case", KEPT, ids=str)
def test_weights_kept_in_bfloat16(cell: str, case: Case, poisoned_memory: None) -> None:
    """The bits are those of the same weights in float32, and of their gradients rounded."""
    data = data_of(cell, case).rounded(torch.bfloat16)
    wide, narrow = data.run(with_bfloat16, torch.float32), data.run(kept, torch.float32)
    weights = set(data.names[-len(data.weights) :])
    for name in data.names:
        expected = wide[name].bfloat16().float() if name in weights else wide[name]
        assert torch.equal(narrow[name], expected), name


def test_the_reference_takes_weights_in_bfloat16_too() -> None:
    """It runs where there is no kernel."""
    data = Data("LSTM", PACKED).rounded(torch.bfloat16)

    def reference_of(cell: str, x: Tensor, h0: Any, weights: Any, **options: Any) -> list[Tensor]:
        narrow = [w.bfloat16() for w in weights]
        return ops.rnn(reference.CELLS[cell], x, h0, narrow, **options)

    expected, result = data.reference(), data.run(reference_of, torch.float32)
    rounded = set(data.names[-len(data.weights) :])  # once, as the weights themselves
    for name in data.names:
        assert error(result[name], expected[name]) < (EPS if name in rounded else 1e-5), name


@pytest.mark.parametrize("threads_used", [1, 2, 3])
def test_weights_kept_in_bfloat16_on_several_threads(threads_used: int, threads: None) -> None:
    torch.set_num_threads(threads_used)
    # By units; each on its own, in one block and in three.
    own = (Case(T=20, N=26, C=33, H=65), Case(T=80, N=26, C=33, H=65))
    for case in (Case(T=20, N=1, C=65, H=330), Case(T=1, N=1, C=512, H=129), *own):
        test_weights_kept_in_bfloat16("GRU", case, None)


@pytest.mark.parametrize("case", [Case(T=3, N=2, C=9, H=11), Case(T=20, N=2, C=10, H=12)], ids=str)
def test_weights_that_lie_anywhere_and_some_in_bfloat16(case: Case) -> None:
    """Transposed, every second column, at an odd address, and biases of either dtype."""
    data = Data("LSTM", case).rounded(torch.bfloat16)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    expected = with_bfloat16("LSTM", x, h0, weights, **data.options)
    w_ih, w_hh, *biases = (w.bfloat16() for w in weights)
    transposed, apart = w_ih.t().contiguous().t(), torch.stack([w_hh, w_hh], 2)[:, :, 1]
    odd = [torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w) for w in (w_ih, w_hh)]
    for given in ([transposed, apart, *biases], [*odd, *biases]):
        for half in ([0, 1, 2, 3], [0], [1], [2, 3]):
            mixed = [given[k] if k in half else w for k, w in enumerate(weights)]
            results = with_bfloat16("LSTM", x, h0, mixed, **data.options)
            assert all(map(torch.equal, results, expected)), half


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("samples", [0, 2])
def test_gradients_have_the_dtype_of_the_weights(every: int, samples: int) -> None:
    """With checkpoints, and of samples."""
    data = Data("GRU", Case(T=5, N=4, C=3, H=6)).rounded(torch.bfloat16)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    options = data.positional_options
    found = []
    for given in (weights, [w.bfloat16() for w in weights]):
        call = ("GRU", x, h0, given, *options)
        y, _, *saved = torch.ops.rnnext.rnn_train(*call, torch.bfloat16, every)
        grads, mask = [torch.ones_like(y), None], [True] * (2 + len(weights))
        arguments = (grads, y, saved, *call, mask, samples, torch.bfloat16, every)
        found.append(torch.ops.rnnext.rnn_backward(*arguments))
    (dx, dh0, *wide), (dx_too, dh0_too, *narrow) = found
    assert torch.equal(dx, dx_too)
    assert torch.equal(dh0, dh0_too)
    assert {w.dtype for w in narrow} == {torch.bfloat16}
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(wide, narrow, strict=True))


def test_opcheck_of_weights_kept_in_bfloat16() -> None:
    data = Data("LSTM", Case(T=9, N=5, C=3, H=6, L=2, D=2))
    x, h0, weights = data.split(data.inputs(torch.float32))
    given = [w.detach().bfloat16().requires_grad_() for w in weights]
    arguments = (data.cell, x, h0, given, *data.positional_options, torch.bfloat16)
    torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)


def test_weights_of_other_dtypes_are_refused() -> None:
    data = Data("GRU", Case(T=3, N=2, C=4, H=5))
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float64)])
    for of_x, of_weights in ((torch.float64, torch.bfloat16), (torch.float32, torch.float16)):
        given = x.to(of_x), [h.to(of_x) for h in h0], [w.to(of_weights) for w in weights]
        with pytest.raises(RuntimeError, match=r"a weight is .* but x is .*; convert one"):
            with_bfloat16("GRU", *given, **data.options)


# The bits of float32's gradients, rounded: on any processor, odd sizes, rows few and many.
KEEPS = """
import torch, rnnext
from rnnext import ops
for T, N, C, H in ((1, 1, 33, 65), (3, 2, 5, 1), (40, 3, 7, 30), (9, 1, 200, 129)):
    x = torch.randn(T, N, C)
    shapes = ((3 * H, C), (3 * H, H), (3 * H,), (3 * H,))
    weights = [(torch.randn(shape) / 8).bfloat16() for shape in shapes]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [w.to(dtype).requires_grad_() for w in weights]
        y = torch.ops.rnnext.rnn("GRU", x, [], given, None, None, 1, False, 0.0, [])[0]
        found.append([y, *torch.autograd.grad(y.square().sum(), given)])
    assert all(map(torch.equal, [t.to(o.dtype) for t, o in zip(*found)], found[1])), (T, N, C, H)
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_weights_kept_in_bfloat16_by_every_set(isa: str) -> None:
    result = run_python(KEEPS, RNNEXT_ISA=isa)
    if "this processor lacks it" not in result.stderr:
        assert result.returncode == 0, result.stderr


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
