"""`lengths=`: padded input as packed input, without work on padding."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CELLS, Case, error
from test_autograd import check_op
from test_derivatives import Run, data_of, second, transformed
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from written_cells import ZOO

import rnnext
from rnnext import ops, reference

LAYERS = ["LSTM", "GRU", "RNN"]
T, N, C, H = 6, 4, 3, 2
LENGTHS = [2, 5, 1, 4]


def layer(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(rnnext, name)(C, H, 2, bidirectional=True, dtype=torch.float64, **options)


def final(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_packed_input_and_each_row_alone(name: str, batch_first: bool) -> None:
    rnn = layer(name, batch_first=batch_first)
    x = torch.randn((N, T, C) if batch_first else (T, N, C), dtype=torch.float64)
    shape = (4, N, H)
    h = torch.randn(shape, dtype=torch.float64)
    hx = (h, torch.randn(shape, dtype=torch.float64)) if name == "LSTM" else h
    y, states = rnn(x, hx, lengths=LENGTHS)

    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first, enforce_sorted=False)
    y_packed, states_packed = rnn(packed, hx)
    padded, _ = pad_packed_sequence(y_packed, batch_first, total_length=T)
    assert torch.equal(y, padded)
    for a, b in zip(final(states), final(states_packed), strict=True):
        assert torch.equal(a, b)

    for n, end in enumerate(LENGTHS):
        row = x[n, :end] if batch_first else x[:end, n]
        row_hx = tuple(s[:, n] for s in hx) if name == "LSTM" else hx[:, n]
        y_row, states_row = rnn(row, row_hx)
        mine = y[n] if batch_first else y[:, n]
        torch.testing.assert_close(mine[:end], y_row, rtol=1e-12, atol=1e-12)
        assert (mine[end:] == 0).all()
        for a, b in zip(final(states), final(states_row), strict=True):
            torch.testing.assert_close(a[:, n], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_neither_read_nor_worked_on(
    batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = layer("LSTM", batch_first=batch_first)
    x = torch.full((N, T, C), torch.nan, dtype=torch.float64)
    for n, end in enumerate(LENGTHS):
        x[n, :end] = torch.randn(end, C)
    x = (x if batch_first else x.transpose(0, 1)).requires_grad_()
    run, rows = ops.rnn, []

    def counting(cell: str, x: Tensor, *args: Any, **options: Any) -> list[Tensor]:
        rows.append(len(x))
        assert options["batch_sizes"].tolist() == [4, 3, 2, 2, 1, 0]  # no step has padding
        return run(cell, x, *args, **options)

    monkeypatch.setattr(ops, "rnn", counting)
    y, (h_n, c_n) = rnn(x, lengths=LENGTHS)
    (y.sum() + h_n.sum() + c_n.sum()).backward()
    assert rows == [N * T]
    grad = x.grad if batch_first else x.grad.transpose(0, 1)
    padding = torch.arange(T) >= torch.tensor(LENGTHS).unsqueeze(1)
    assert torch.isfinite(y).all()
    assert (grad[padding] == 0).all()
    assert (grad[~padding] != 0).all()
    assert all(torch.isfinite(p.grad).all() for p in rnn.parameters())


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor(LENGTHS),
        torch.tensor(LENGTHS, dtype=torch.int32),
        np.array(LENGTHS, dtype=np.int16),
        tuple(LENGTHS),
    ],
    ids=["int64", "int32", "numpy", "tuple"],
)
def test_lengths_come_in_any_form_of_integers(lengths: Any) -> None:
    rnn, x = layer("GRU"), torch.randn(T, N, C, dtype=torch.float64)
    assert torch.equal(rnn(x, lengths=lengths)[0], rnn(x, lengths=LENGTHS)[0])


def test_full_lengths_equal_none() -> None:
    rnn, x = layer("GRU"), torch.randn(T, N, C, dtype=torch.float64)
    for a, b in zip(rnn(x, lengths=[T] * N), rnn(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([2, 5, 1], ValueError, "one entry for each of 4 rows, but got 3"),
        (torch.ones(N, 1, dtype=torch.int64), ValueError, r"one dimension, \[N\], .* \[4, 1\]"),
        (torch.tensor(2), ValueError, r"one dimension, \[N\], but got \[\]"),
        ([2, 0, 1, 4], ValueError, r"in 1..6 \(T\), but lengths\[1\] is 0"),
        (torch.tensor([2, 5, 7, 4]), ValueError, r"in 1..6 \(T\), but lengths\[2\] is 7"),
        ([2, -1, 1, 4], ValueError, r"lengths\[1\] is -1"),
        ([2.0, 5, 1, 4], TypeError, "lengths must be integers.*float"),
        (torch.ones(N), TypeError, "lengths must be integers.*float"),
        (torch.ones(N, dtype=torch.complex64), TypeError, "lengths must be integers.*complex"),
        (4, TypeError, "lengths must be integers, in a tensor or a list"),
    ],
)
def test_bad_lengths_are_named(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer("LSTM")(torch.zeros(T, N, C, dtype=torch.float64), lengths=lengths)


def test_lengths_need_padded_batched_input() -> None:
    rnn, x = layer("LSTM"), torch.zeros(T, N, C, dtype=torch.float64)
    with pytest.raises(ValueError, match="unbatched 2-D input"):
        rnn(x[:, 0], lengths=[T])
    with pytest.raises(ValueError, match="with a PackedSequence, which has its own"):
        rnn(nn.utils.rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False), lengths=LENGTHS)


def test_other_errors_are_those_without_lengths() -> None:
    rnn, x = layer("LSTM"), torch.zeros(T, N, C, dtype=torch.float64)
    h = torch.zeros(4, N - 1, H, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"Expected hidden\[0\] size \(4, 4, 2\), got \[4, 3, 2\]"
    ):
        rnn(x, (h, h), lengths=LENGTHS)
    with pytest.raises(RuntimeError, match="Expected 3, got 2"):
        rnn(x[..., :2], lengths=LENGTHS)
    with pytest.raises(ValueError, match="RNN input dtype"):
        rnn(x.float(), lengths=LENGTHS)


def with_padding(run: Run) -> Run:
    """The op on packed rows that are followed by padding: NaN, and NaN for its gradients."""

    def padded(cell: str, x: Tensor, *args: Any, batch_sizes: Tensor, **options: Any) -> Any:
        steps = torch.cat([batch_sizes, batch_sizes.new_zeros(2)])
        nan = x.new_full((len(steps) * int(steps[0]) - len(x), x.size(1)), torch.nan)
        y, *states = run(cell, torch.cat([x, nan]), *args, batch_sizes=steps, **options)
        assert (y[len(x) :] == 0).all()
        scale = y.new_ones(len(y), 1)
        scale[len(x) :] = torch.nan
        return [(y * scale)[: len(x)], *states]

    return padded


PADDED = (
    Case(T=6, N=4, C=3, H=5, L=2, D=2, lengths=(6, 4, 4, 1), dropout=0.3),
    Case(T=90, N=9, C=8, H=24, L=2, lengths=(90, 80, 80, 33, 9, 8, 7, 1, 1), h0=False),
)


@pytest.mark.parametrize("cell", [*CELLS, *ZOO])
@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padding_after_packed_rows_changes_no_bit(
    cell: str, case: Case, poisoned_memory: None
) -> None:
    data = data_of(cell, case)
    for run, dtype in ((ops.rnn, torch.float32), (ops.rnn, torch.float64)):
        expected, result = data.run(run, dtype), data.run(with_padding(run), dtype)
        for name in data.names:
            assert torch.equal(result[name], expected[name]), (dtype, name)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "Everything"])
def test_the_reference_takes_padding_too(cell: str) -> None:
    data = data_of(cell, PADDED[0])
    expected, result = data.reference(), data.run(with_padding(reference.rnn), torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-13, name
    data.x = data.x[:-1]
    with pytest.raises(RuntimeError, match=r"has 14 rows, but batch_sizes add up to 15 \(24 with"):
        data.reference()


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SLSTM", "Everything"])
def test_padding_does_not_reach_second_derivatives(cell: str) -> None:
    data = data_of(cell, PADDED[0])
    expected = second(data, reference.rnn, torch.float64)
    result = second(data, with_padding(ops.rnn), torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-11, name
    expected, result = (transformed(data, run) for run in (reference.rnn, with_padding(ops.rnn)))
    for a, b in zip(result, expected, strict=True):
        assert error(a, b) < 1e-11


@pytest.mark.parametrize("cell", ["GRU", "SLSTM"])
def test_opcheck_with_padding(cell: str) -> None:
    data = data_of(cell, PADDED[0])
    missing = data.case.T * data.case.N - len(data.x)
    data.x = F.pad(data.x, (0, 0, 0, missing), value=torch.nan)
    data.grads[0] = F.pad(data.grads[0], (0, 0, 0, missing))
    check_op(data, torch.float64)


@pytest.mark.parametrize("name", ["LSTM", "RNN", "MinimalGated"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_derivatives_of_every_order_and_mode(name: str, batch_first: bool) -> None:
    rnn = (ZOO.get(name) or getattr(rnnext, name))(C, H, batch_first=batch_first).double()
    x = torch.full((N, T, C), torch.nan, dtype=torch.float64)
    padding = torch.arange(T) >= torch.tensor(LENGTHS).unsqueeze(1)
    values = torch.randn(sum(LENGTHS), C, dtype=torch.float64, requires_grad=True)

    def run(values: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Of what is no padding; that is NaN."""
        given = x.masked_scatter(~padding.unsqueeze(2), values)
        given = given if batch_first else given.transpose(0, 1)
        named = dict(zip(dict(rnn.named_parameters()), weights, strict=True))
        y, states = torch.func.functional_call(rnn, named, (given,), {"lengths": LENGTHS})
        return y, *final(states)

    inputs = (values, *rnn.parameters())
    assert gradcheck(run, inputs, check_forward_ad=True)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [T] * N, [1] * N, [3]], ids=str)
def test_packing(batch_first: bool, lengths: list[int]) -> None:
    given, n = torch.tensor(lengths), len(lengths)
    packing = torch.ops.rnnext.packing
    batch_sizes, order, inverse, rows, back = packing(given, n, T, batch_first)
    x = torch.arange(n * T).view((n, T) if batch_first else (T, n))
    x_packed = pack_padded_sequence(x.unsqueeze(2), given, batch_first, enforce_sorted=False)
    data, sizes, sorted_indices, unsorted_indices = x_packed
    assert torch.equal(batch_sizes[: len(sizes)], sizes)
    assert (batch_sizes[len(sizes) :] == 0).all()
    assert torch.equal(rows[: len(data)], data.squeeze(1))
    assert torch.equal(rows[back], torch.arange(n * T))
    assert torch.equal(order, sorted_indices)
    assert torch.equal(inverse, unsorted_indices)
    torch.library.opcheck(packing.default, (given, n, T, batch_first))
