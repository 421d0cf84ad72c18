"""The reference cells and loop against torch.nn, and the dropout mask against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnext import reference

MODES = list(reference.CELLS)
NN = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


def nn_layer(mode: str, *sizes: int, **options: object) -> nn.RNNBase:
    if mode == "RNN_RELU":
        options["nonlinearity"] = "relu"
    return NN[mode](*sizes, dtype=torch.float64, **options)


def assert_close(name: str, ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-12)
    assert error <= 1e-12, f"{name}: relative error {error:.1e}"


def assert_equals_nn(
    layer: nn.RNNBase, x: Tensor, h0: list[Tensor], lengths: list[int] | None
) -> None:
    """Compare outputs, final states and the gradients of x, h0 and weights; x is [T, N, C]."""
    leaves = {"x": x, **{f"h0[{k}]": h for k, h in enumerate(h0)}}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    leaves |= dict(layer.named_parameters())
    hx = None if not h0 else tuple(h0) if layer.mode == "LSTM" else h0[0]
    if lengths:
        packed = pack_padded_sequence(x, lengths)
        rows, sizes = packed.data, packed.batch_sizes
        (y, *_), states = layer(packed, hx)
    else:
        rows, sizes = x, None
        y, states = layer(x, hx)
    theirs = [y, *states] if layer.mode == "LSTM" else [y, states]
    ours = reference.rnn(
        layer.mode,
        rows,
        h0,
        list(layer.parameters()),
        batch_sizes=sizes,
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
    )
    for name, a, b in zip(("y", "h_n", "c_n"), ours, theirs, strict=False):
        assert a.shape == b.shape
        assert_close(name, a, b)
    toward = [torch.randn_like(b) for b in theirs]
    grads = [
        torch.autograd.grad(out, list(leaves.values()), toward, retain_graph=True)
        for out in (ours, theirs)
    ]
    for name, a, b in zip(leaves, *grads, strict=True):
        assert_close(f"gradient of {name}", a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("lengths", [None, [5, 5, 2, 1]])
def test_equals_nn(
    mode: str, num_layers: int, bidirectional: bool, lengths: list[int] | None
) -> None:
    torch.manual_seed(0)
    layer = nn_layer(mode, 3, 4, num_layers=num_layers, bidirectional=bidirectional)
    runs = num_layers * (1 + bidirectional)
    states = reference.CELLS[mode].states
    h0 = [torch.randn(runs, 4, 4, dtype=torch.float64) for _ in range(states)]
    assert_equals_nn(layer, torch.randn(5, 4, 3, dtype=torch.float64), h0, lengths)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    mode=st.sampled_from(MODES),
    sizes=st.tuples(*(st.integers(1, 5) for _ in range(2))),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    steps=st.integers(1, 6),
    n=st.integers(1, 5),
    given_h0=st.booleans(),
    packed=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_equals_nn_whatever_the_arguments(
    mode: str,
    sizes: tuple[int, int],
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    steps: int,
    n: int,
    given_h0: bool,
    packed: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    torch.manual_seed(seed)
    layer = nn_layer(mode, *sizes, num_layers=num_layers, bias=bias, bidirectional=bidirectional)
    lengths = None
    if packed:
        drawn = data.draw(st.lists(st.integers(1, steps), min_size=n, max_size=n))
        lengths = sorted(drawn, reverse=True)
    shape = (num_layers * (1 + bidirectional), n, sizes[1])
    states = reference.CELLS[mode].states if given_h0 else 0
    h0 = [torch.randn(shape, dtype=torch.float64) for _ in range(states)]
    assert_equals_nn(layer, torch.randn(steps, n, sizes[0], dtype=torch.float64), h0, lengths)


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_pass_gradcheck(mode: str) -> None:
    torch.manual_seed(0)
    layer = nn_layer(mode, 2, 2, num_layers=2, bidirectional=True)
    sizes = torch.tensor([2, 1])
    h0 = [torch.randn(4, 2, 2, dtype=torch.float64) for _ in range(reference.CELLS[mode].states)]
    x = torch.randn(3, 2, dtype=torch.float64)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3}
        states, weights = rest[: len(h0)], rest[len(h0) :]
        seed = torch.tensor([7])
        return tuple(
            reference.rnn(mode, x, states, weights, batch_sizes=sizes, seed=seed, **options)
        )

    leaves = [t.detach().requires_grad_() for t in (x, *h0, *layer.parameters())]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_strided_input_and_no_rows_at_all(mode: str) -> None:
    layer = nn_layer(mode, 3, 4)
    x = torch.randn(2, 5, 6, dtype=torch.float64)[..., ::2].transpose(0, 1)
    assert_close("y", reference.rnn(mode, x, [], list(layer.parameters()))[0], layer(x)[0])
    y, h_n, *_ = reference.rnn(mode, x[:, :0], [], list(layer.parameters()))
    assert y.shape == (5, 0, 4)
    assert h_n.shape == (1, 0, 4)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_follows_float64(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn_layer(mode, 8, 8)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    wide = reference.rnn(mode, x, [], list(layer.parameters()))
    out = reference.rnn(mode, x.to(dtype), [], [w.to(dtype) for w in layer.parameters()])
    for ours, exact in zip(out, wide, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact).norm() <= 10 * torch.finfo(dtype).eps * exact.norm()


def test_the_meta_device_gives_shapes() -> None:
    layer = nn.LSTM(3, 4, 2, bidirectional=True, device="meta")
    x = torch.empty(5, 2, 3, device="meta")
    out = reference.rnn("LSTM", x, [], list(layer.parameters()), num_layers=2, bidirectional=True)
    assert [tuple(t.shape) for t in out] == [(5, 2, 8), (4, 2, 4), (4, 2, 4)]
    assert all(t.is_meta for t in out)


def test_a_cell_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(x: Tensor, r: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (0.9 * states[0] + 0.1 * (x + r).tanh(),)

    monkeypatch.setitem(reference.CELLS, "LEAKY", reference.Cell(gates=1, states=1, step=leaky))
    x, w_ih, w_hh = torch.randn(6, 2, 3), torch.randn(4, 3), torch.randn(4, 4)
    y, h_n = reference.rnn("LEAKY", x, [], [w_ih, w_hh])
    h = torch.zeros(2, 4)
    for x_t in x:
        h = 0.9 * h + 0.1 * (x_t @ w_ih.T + h @ w_hh.T).tanh()
    torch.testing.assert_close(y[-1], h)
    torch.testing.assert_close(h_n[0], h)


def test_bad_arguments_are_named() -> None:
    x, weights = torch.zeros(2, 1, 3), [torch.zeros(4, 3), torch.zeros(4, 1)]
    with pytest.raises(ValueError, match="unknown cell 'LTSM': expected one of LSTM, GRU"):
        reference.rnn("LTSM", x, [], weights)
    with pytest.raises(ValueError, match=r"got 3 weights .* expected 2 .* or 4"):
        reference.rnn("LSTM", x, [], [*weights, weights[0]])
    with pytest.raises(ValueError, match="got 1 initial states: LSTM expects none or 2"):
        reference.rnn("LSTM", x, [torch.zeros(1, 1, 1)], weights)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        reference.rnn("LSTM", x[:0], [], weights)


# Published with Random123: counter, key and result of Philox4x32-10.
PHILOX = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    given = ([torch.tensor(int(word, 16)) for word in text.split()] for text in (counter, key))
    out = reference._philox(*given)
    assert " ".join(f"{int(word):08x}" for word in out) == expected


def test_dropout_bits_are_philox_at_the_counter_of_their_index() -> None:
    seed, layer = 0x0123456789ABCDEF, 3
    bits = reference.dropout_bits(torch.tensor([seed]), layer, 42)
    key = [torch.tensor(0x89ABCDEF), torch.tensor(0x01234567)]
    for i in range(42):
        counter = [torch.tensor(word) for word in (i // 4, 0, layer, 0)]
        assert bits[i] == reference._philox(counter, key)[i % 4]


def test_dropout_bits_are_uniform_and_independent() -> None:
    count = 40_000
    streams = [
        reference.dropout_bits(torch.tensor(s), k, count) for s, k in ((1, 0), (1, 1), (2, 0))
    ]
    units = torch.stack(streams).double() / 2**32
    bins = torch.stack([torch.histc(u, 64, 0, 1) for u in units])
    chi2 = ((bins - count / 64) ** 2 / (count / 64)).sum(1)
    # 63 degrees of freedom: mean 63, variance 126.
    assert ((chi2 - 63).abs() < 5 * math.sqrt(126)).all()
    shifted = torch.cat([units, units[:1].roll(1), units[:1].roll(4)])
    correlation = torch.corrcoef(shifted) - torch.eye(5)
    assert correlation.abs().max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_it(p: float) -> None:
    x = torch.ones(300, 100, dtype=torch.float64)
    y = reference.apply_dropout(x, p, torch.tensor(5), 0)
    kept = y != 0
    assert (y[kept] == 1 / (1 - p)).all()
    for share, count in ((kept.double().mean(), 30_000), (kept.double().mean(1), 100)):
        assert ((share - (1 - p)).abs() < 5 * math.sqrt(p * (1 - p) / count)).all()


def test_dropout_of_one_gives_zeros_and_zero_gradients() -> None:
    x = torch.tensor([[math.inf, math.nan, 1.0]], requires_grad=True)
    y = reference.apply_dropout(x, 1.0, torch.tensor(5), 0)
    y.sum().backward()
    assert (y == 0).all()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("sizes", [None, [3, 3, 2, 1]])
def test_dropout_acts_on_each_layer_but_the_last_by_row_and_column(sizes: list[int] | None) -> None:
    torch.manual_seed(0)
    layer = nn_layer("GRU", 3, 4, num_layers=3, bidirectional=True)
    weights, seed = list(layer.parameters()), torch.tensor([2**40 + 3])
    x = torch.randn((9, 3) if sizes else (4, 3, 3), dtype=torch.float64)
    common = {"batch_sizes": None if sizes is None else torch.tensor(sizes), "bidirectional": True}
    y = x
    for k in range(3):
        if k > 0:
            y = reference.apply_dropout(y.reshape(-1, 8), 0.4, seed, k - 1).view(*x.shape[:-1], 8)
        y = reference.rnn("GRU", y, [], weights[k * 8 : k * 8 + 8], **common)[0]
    stack = {**common, "num_layers": 3, "dropout": 0.4}
    dropped = reference.rnn("GRU", x, [], weights, seed=seed, **stack)[0]
    assert torch.equal(dropped, y)
    assert torch.equal(dropped, reference.rnn("GRU", x, [], weights, seed=seed, **stack)[0])
    kept = reference.rnn("GRU", x, [], weights, **common, num_layers=3)[0]
    assert torch.equal(reference.rnn("GRU", x, [], weights, **stack)[0], kept)
    assert not torch.equal(dropped, kept)
