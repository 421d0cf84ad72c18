"""The reference cells and loop against torch.nn, and the dropout mask against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnnext import reference
from rnnext.cell import declare
from rnnext.noise import apply_dropout

MODES = ["LSTM", "LSTM_PROJ", "GRU", "RNN_TANH", "RNN_RELU"]
NN = {
    "LSTM": nn.LSTM,
    "LSTM_PROJ": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": nn.RNN,
}


def nn_layer(mode: str, *sizes: int, **options: object) -> nn.RNNBase:
    if mode == "RNN_RELU":
        options["nonlinearity"] = "relu"
    if mode == "LSTM_PROJ":
        options["proj_size"] = sizes[1] - 1
    return NN[mode](*sizes, dtype=torch.float64, **options)


def mode_of(layer: nn.RNNBase) -> str:
    return "LSTM_PROJ" if layer.proj_size else layer.mode


def op_sizes(layer: nn.RNNBase) -> tuple[int, ...]:
    return (layer.proj_size,) if layer.proj_size else ()


def states_of(layer: nn.RNNBase, n: int) -> list[Tensor]:
    """Random initial states, [L*D, n, width] each."""
    runs = layer.num_layers * (1 + layer.bidirectional)
    widths = [layer.proj_size or layer.hidden_size]
    widths += [layer.hidden_size] if layer.mode == "LSTM" else []
    return [torch.randn(runs, n, width, dtype=torch.float64) for width in widths]


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
        mode_of(layer),
        rows,
        h0,
        list(layer.parameters()),
        batch_sizes=sizes,
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        sizes=op_sizes(layer),
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
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    assert_equals_nn(layer, x, states_of(layer, 4), lengths)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    mode=st.sampled_from(MODES),
    sizes=st.tuples(st.integers(1, 5), st.integers(2, 5)),
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
    h0 = states_of(layer, n) if given_h0 else []
    assert_equals_nn(layer, torch.randn(steps, n, sizes[0], dtype=torch.float64), h0, lengths)


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_pass_gradcheck(mode: str) -> None:
    torch.manual_seed(0)
    layer = nn_layer(mode, 2, 2, num_layers=2, bidirectional=True)
    sizes = torch.tensor([2, 1])
    h0 = states_of(layer, 2)
    x = torch.randn(3, 2, dtype=torch.float64)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "sizes": op_sizes(layer)}
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
    weights, sizes = list(layer.parameters()), op_sizes(layer)
    assert_close("y", reference.rnn(mode, x, [], weights, sizes=sizes)[0], layer(x)[0])
    y, h_n, *_ = reference.rnn(mode, x[:, :0], [], weights, sizes=sizes)
    assert y.shape == (5, 0, *layer(x)[0].shape[2:])
    assert h_n.shape == (1, 0, *layer(x)[0].shape[2:])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_follows_float64(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn_layer(mode, 8, 8)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    weights, sizes = list(layer.parameters()), op_sizes(layer)
    wide = reference.rnn(mode, x, [], weights, sizes=sizes)
    out = reference.rnn(mode, x.to(dtype), [], [w.to(dtype) for w in weights], sizes=sizes)
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
    def leaky(a: Tensor, h: Tensor) -> Tensor:
        return 0.9 * h + 0.1 * a.tanh()

    cell = declare("LEAKY", leaky, gates=("a",))
    monkeypatch.setitem(reference.CELLS, "LEAKY", cell)
    x, w_ih, w_hh = torch.randn(6, 2, 3), torch.randn(4, 3), torch.randn(4, 4)
    y, h_n = reference.rnn("LEAKY", x, [], [w_ih, w_hh])
    h = torch.zeros(2, 4)
    for x_t in x:
        h = 0.9 * h + 0.1 * (x_t @ w_ih.T + h @ w_hh.T).tanh()
    torch.testing.assert_close(y[-1], h)
    torch.testing.assert_close(h_n[0], h)
    assert torch.equal(reference.rnn(cell, x, [], [w_ih, w_hh])[0], y)


def test_bad_arguments_are_named() -> None:
    x, weights = torch.zeros(2, 1, 3), [torch.zeros(4, 3), torch.zeros(4, 1)]
    with pytest.raises(ValueError, match=r"got 0 sizes: LSTM_PROJ expects 1 \(proj_size\)"):
        reference.rnn("LSTM_PROJ", x, [], [*weights, torch.zeros(1, 1)])
    broken = declare("BROKEN", lambda a, h: (a, h), gates=("a",))
    with pytest.raises(ValueError, match=r"BROKEN.step returns 2 values, but the states are h:"):
        reference.rnn(broken, x, [], [torch.zeros(1, 3), torch.zeros(1, 1)])
    with pytest.raises(ValueError, match="unknown cell 'LTSM': expected one of LSTM, GRU"):
        reference.rnn("LTSM", x, [], weights)
    with pytest.raises(ValueError, match=r"got 3 weights .* expected 2 .* or 4"):
        reference.rnn("LSTM", x, [], [*weights, weights[0]])
    with pytest.raises(ValueError, match="got 1 initial states: LSTM expects none or 2"):
        reference.rnn("LSTM", x, [torch.zeros(1, 1, 1)], weights)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        reference.rnn("LSTM", x[:0], [], weights)


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
            y = apply_dropout(y.reshape(-1, 8), 0.4, seed, k - 1).view(*x.shape[:-1], 8)
        y = reference.rnn("GRU", y, [], weights[k * 8 : k * 8 + 8], **common)[0]
    stack = {**common, "num_layers": 3, "dropout": 0.4}
    dropped = reference.rnn("GRU", x, [], weights, seed=seed, **stack)[0]
    assert torch.equal(dropped, y)
    assert torch.equal(dropped, reference.rnn("GRU", x, [], weights, seed=seed, **stack)[0])
    kept = reference.rnn("GRU", x, [], weights, **common, num_layers=3)[0]
    assert torch.equal(reference.rnn("GRU", x, [], weights, **stack)[0], kept)
    assert not torch.equal(dropped, kept)
