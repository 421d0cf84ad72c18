"""`reset=`: sequences that begin anew in the middle of a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence
from written_cells import ZOO

import rnnext
from rnnext import cells, reference

T, N, C, H = 7, 4, 3, 5
LENGTHS = [3, 7, 1, 5]
LAYERS = ["LSTM", "GRU", "RNN", "MinimalGated", "SLSTM", "LayerNormGRU"]


def layer_of(name: str, *, layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    kind = ZOO.get(name) or getattr(cells if name.startswith("Layer") else rnnext, name)
    return kind(C, H, layers, dtype=torch.float64, **options)


def data(rnn: Any, share: float = 0.3) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """x, initial states and reset; in row 2 every step begins anew, in row 3 none does."""
    torch.manual_seed(1)
    x = torch.randn(T, N, C, dtype=torch.float64)
    widths = rnn._states().values()
    # Those of an sLSTM must be ones that it can come to.
    states = tuple(torch.rand(rnn._runs(), N, w, dtype=torch.float64) + 1 for w in widths)
    reset = torch.rand(T, N) < share
    reset[0] = torch.tensor([True, False, True, False])
    reset[:, 2], reset[:, 3] = True, False
    return x, states, reset


def looped(
    rnn: Any, x: Tensor, hx: tuple[Tensor, ...], reset: Tensor, lengths: list[int]
) -> list[Tensor]:
    """y and the final states, step by step, by a loop that zeroes the states."""
    cell = reference.CELLS[rnn.mode] if hasattr(rnn, "mode") else rnn.declaration
    weights = [getattr(rnn, name) for name in rnn._names()]
    count, directions = len(weights) // rnn._runs(), 2 if rnn.bidirectional else 1
    ends = torch.tensor(lengths)
    finals = []
    for layer in range(rnn.num_layers):
        outputs = []
        for d in range(directions):
            k = layer * directions + d
            states, ys = [h[k : k + 1] for h in hx], {}
            for t in reversed(range(T)) if d else range(T):
                alive = (t < ends)[:, None]
                anew = torch.zeros(N, dtype=torch.bool)
                if d == 0:
                    anew = reset[t]
                elif t + 1 < T:
                    anew = reset[t + 1] & (t + 1 < ends)
                begin = [torch.where(anew[:, None], 0, s) for s in states]
                own = weights[k * count : (k + 1) * count]
                y, *new = reference.rnn(cell, x[t : t + 1], begin, own)
                states = [torch.where(alive, a, b) for a, b in zip(new, states, strict=True)]
                ys[t] = torch.where(alive, y, 0)
            outputs.append(torch.cat([ys[t] for t in range(T)]))
            finals.append(states)
        x = torch.cat(outputs, 2)
    return [x, *(torch.cat(state) for state in zip(*finals, strict=True))]


def outputs_of(rnn: Any, x: Tensor, hx: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    y, states = rnn(x, hx if len(hx) > 1 else hx[0], **options)
    return [y, *((states,) if isinstance(states, Tensor) else states)]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, grads, materialize_grads=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_equals_a_loop_that_zeroes_the_states(
    name: str, bidirectional: bool, lengths: list[int] | None, batch_first: bool
) -> None:
    rnn = layer_of(name, bidirectional=bidirectional, batch_first=batch_first)
    x, states, reset = data(rnn)
    leaves = [t.requires_grad_() for t in (x, *states)]
    inputs = [*leaves, *rnn.parameters()]
    expected = looped(rnn, x, states, reset, lengths or [T] * N)
    given = (x.transpose(0, 1), reset.t()) if batch_first else (x, reset)
    result = outputs_of(rnn, given[0], states, lengths=lengths, reset=given[1])
    if batch_first:
        result[0] = result[0].transpose(0, 1)
    pairs = [
        *zip(result, expected, strict=True),
        *zip(gradients(result, inputs), gradients(expected, inputs), strict=True),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_without_initial_states_they_are_zero(name: str) -> None:
    rnn = layer_of(name, bidirectional=True)
    x, states, reset = data(rnn)
    y, _ = rnn(x, reset=reset)
    zeros = tuple(torch.zeros_like(s) for s in states)
    assert torch.equal(y, outputs_of(rnn, x, zeros, reset=reset)[0])


def test_unbatched() -> None:
    rnn = layer_of("LSTM", bidirectional=True, batch_first=True)
    x, states, reset = data(rnn)
    row = outputs_of(rnn, x[:, 0], tuple(s[:, 0] for s in states), reset=reset[:, 0])
    expected = looped(rnn, x, states, reset, [T] * N)
    for a, b in zip(row, expected, strict=True):
        torch.testing.assert_close(a, b[:, 0], rtol=1e-11, atol=1e-11)


def test_nothing_to_cut_changes_no_bit_of_a_batch() -> None:
    rnn = layer_of("GRU", bidirectional=True)
    x, states, reset = data(rnn)
    cut = outputs_of(rnn, x, states, reset=torch.zeros_like(reset))
    padded = outputs_of(rnn, x, states, reset=torch.zeros_like(reset), lengths=LENGTHS)
    for a, b in zip(cut, outputs_of(rnn, x, states, lengths=[T] * N), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(padded, outputs_of(rnn, x, states, lengths=LENGTHS), strict=True):
        assert torch.equal(a, b)


def test_one_step_at_a_time_as_an_agent_acts() -> None:
    rnn = layer_of("LSTM")
    x, states, reset = data(rnn)
    expected = outputs_of(rnn, x, states, reset=reset)
    ys, now = [], states
    for t in range(T):
        y, now = rnn(x[t : t + 1], now, reset=reset[t : t + 1])
        ys.append(y)
    for a, b in zip([torch.cat(ys), *now], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_what_lies_before_a_reset_or_in_padding_reaches_nothing_after_it() -> None:
    rnn = layer_of("LSTM")
    x, states, reset = data(rnn)
    reset[2, 1] = True
    clean = outputs_of(rnn, x, states, reset=reset, lengths=LENGTHS)
    x, states = x.clone(), tuple(s.clone() for s in states)
    x[:2, 1] = x[3:, 0] = x[5:, 3] = torch.nan
    for state in states:
        state[:, 1] = torch.nan
    y, *finals = outputs_of(rnn, x, states, reset=reset, lengths=LENGTHS)
    assert torch.equal(y[2:], clean[0][2:])
    for a, b in zip(finals, clean[1:], strict=True):
        assert torch.equal(a, b)


def test_gradcheck_of_both_orders_and_forward_mode() -> None:
    rnn = layer_of("LSTM", layers=1, bidirectional=True)
    x, states, reset = data(rnn)

    def run(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs_of(rnn, x, states, reset=reset, lengths=LENGTHS))

    inputs = (x.requires_grad_(), *(s.requires_grad_() for s in states))
    assert gradcheck(run, inputs, check_forward_ad=True)
    assert gradgradcheck(run, inputs)


def test_noise_and_checkpoints() -> None:
    rnn = cells.LSTM(C, H, zoneout_h=0.3, dtype=torch.float64)
    x, states, reset = data(rnn)

    def run() -> list[Tensor]:
        torch.manual_seed(4)
        return outputs_of(rnn, x, states, reset=reset)

    first, again = run(), run()
    rnn.checkpoint_every = 2
    for a, b, c in zip(first, again, run(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    rnn.eval()
    expected = looped(rnn, x, states, reset, [T] * N)
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("lengths", "backend"), [(False, "aot_eager"), (True, "inductor")])
def test_one_compiled_graph_for_all_masks(
    inductor_cache: None, lengths: bool, backend: str
) -> None:
    rnn = layer_of("LSTM", bidirectional=True)
    x, states, _ = data(rnn)
    ends = torch.tensor(LENGTHS)
    counter = CompileCounterWithBackend(backend)
    torch._dynamo.reset()

    def run(x: Tensor, states: Any, reset: Tensor, ends: Tensor) -> Any:
        return rnn(x, states, reset=reset, lengths=ends if lengths else None)

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for share in (0.0, 0.3, 0.9):
        _, _, reset = data(rnn, share)
        leaf = x.clone().requires_grad_()
        y, final = compiled(leaf, states, reset, ends)
        expected, final_expected = run(leaf, states, reset, ends)
        assert torch.equal(y, expected)
        for a, b in zip(final, final_expected, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(gradients([y], [leaf]), gradients([expected], [leaf]), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_cutting(batch_first: bool, lengths: list[int] | None) -> None:
    reset = data(layer_of("GRU"))[2]
    ends = torch.tensor(lengths or [T] * N)
    given = reset.t() if batch_first else reset
    arguments = (given, ends if lengths else None, N, T, batch_first)
    batch_sizes, rows, back, first, last, of = torch.ops.rnnext.cutting(*arguments)
    pieces = []  # as (length, sequence, first step)
    for n in range(N):
        starts = [t for t in range(ends[n]) if t == 0 or reset[t, n]]
        stops = [*starts[1:], int(ends[n])]
        pieces += [(stop - start, n, start) for start, stop in zip(starts, stops, strict=True)]
    pieces.sort(key=lambda piece: -piece[0])
    assert of.tolist() == [n for _, n, _ in pieces]
    assert batch_sizes.tolist() == [sum(size > t for size, _, _ in pieces) for t in range(T)]
    expected = [(start + t, n) for t in range(T) for size, n, start in pieces if t < size]
    place = torch.arange(N * T).view((N, T) if batch_first else (T, N))
    place = place.t() if batch_first else place
    assert rows[: len(expected)].tolist() == [int(place[t, n]) for t, n in expected]
    assert torch.equal(rows[back], torch.arange(N * T))
    for n in range(N):
        assert pieces[first[n]][1:] == (n, 0)
        assert pieces[last[n]][1] == n
        assert sum(pieces[last[n]][::2]) == ends[n]
    torch.library.opcheck(torch.ops.rnnext.cutting.default, arguments)


@pytest.mark.parametrize(
    ("reset", "error", "message"),
    [
        (torch.zeros(T, N), TypeError, "reset must be bool, but got torch.float32"),
        ([[False] * N] * T, TypeError, "reset must be a bool tensor, but got list"),
        (torch.zeros(N, T, dtype=torch.bool), ValueError, r"\[T, N\], \[7, 4\].* got \[4, 7\]"),
        (torch.zeros(T, dtype=torch.bool), ValueError, r"\[T, N\], \[7, 4\].* got \[7\]"),
    ],
)
def test_what_is_no_reset_is_named(reset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer_of("LSTM")(torch.zeros(T, N, C, dtype=torch.float64), reset=reset)


def test_other_errors() -> None:
    x, reset = torch.zeros(T, N, C, dtype=torch.float64), torch.zeros(T, N, dtype=torch.bool)
    rnn = layer_of("LSTM", batch_first=True)
    with pytest.raises(ValueError, match=r"\[N, T\], as batch_first.* got \[7, 4\]"):
        rnn(x.transpose(0, 1), reset=reset)
    rnn = layer_of("LSTM")
    with pytest.raises(ValueError, match=r"reset must be \[T\], as unbatched input.* \[7, 4\]"):
        rnn(x[:, 0], reset=reset)
    with pytest.raises(ValueError, match="reset= was given with a PackedSequence: pad it"):
        rnn(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), reset=reset)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(2, 4, 5\)"):
        rnn(x, (torch.zeros(2, 3, H).double(), torch.zeros(2, N, H).double()), reset=reset)
    with pytest.raises(ValueError, match=r"lengths must be in 1..7 \(T\)"):
        rnn(x, reset=reset, lengths=[1, 2, 3, 8])
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        rnn(x[:0], reset=reset[:0])


def test_an_empty_batch_stays_empty() -> None:
    y, _ = layer_of("LSTM")(torch.zeros(T, 0, C).double(), reset=torch.zeros(T, 0).bool())
    assert y.shape == (T, 0, H)
