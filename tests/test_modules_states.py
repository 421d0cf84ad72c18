"""`return_states=`: every state of the last layer after every step."""

from typing import Any

import pytest
import torch
from test_modules_reset import gradients
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from written_cells import ZOO

import rnnext
from rnnext import cells, ops, reference

T, N, C, H = 7, 4, 3, 5
LENGTHS = [3, 7, 1, 5]
LAYERS: dict[str, Any] = {
    "LSTM": lambda **o: rnnext.LSTM(C, H, 2, **o),
    "LSTM_PROJ": lambda **o: rnnext.LSTM(C, H, 2, proj_size=2, **o),
    "LayerNormLSTM": lambda **o: cells.LayerNormLSTM(C, H, 2, **o),
    "SLSTM": lambda **o: ZOO["SLSTM"](C, H, 2, **o),
    "Everything": lambda **o: ZOO["Everything"](C, H, 2, out_size=4, key_size=2, **o),
}
every = pytest.mark.parametrize("name", list(LAYERS))


def layer_of(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return LAYERS[name](dtype=torch.float64, **options).eval()


def data(rnn: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    widths = rnn._states().values()
    states = [torch.rand(rnn._runs(), N, w, dtype=torch.float64) + 1 for w in widths]
    return torch.randn(T, N, C, dtype=torch.float64), tuple(states)


def looped(rnn: Any, x: Tensor, hx: tuple[Tensor, ...], ends: list[int]) -> list[Tensor]:
    """y, final states and sequences, by a loop over steps and layers in plain PyTorch."""
    mode = "LSTM_PROJ" if getattr(rnn, "proj_size", 0) else getattr(rnn, "mode", None)
    cell = reference.CELLS[mode] if mode else rnn.declaration
    sizes = [rnn.proj_size] if mode == "LSTM_PROJ" else [] if mode else rnn._sizes()
    weights = [getattr(rnn, name) for name in rnn._names()]
    count, directions = len(weights) // rnn._runs(), 2 if rnn.bidirectional else 1
    finals, outputs = [], []
    for layer in range(rnn.num_layers):
        outputs = []
        for d in range(directions):
            k = layer * directions + d
            states, steps = [h[k : k + 1] for h in hx], {}
            for t in reversed(range(T)) if d else range(T):
                alive = (t < torch.tensor(ends))[:, None]
                own = weights[k * count : (k + 1) * count]
                _, *new = reference.rnn(cell, x[t : t + 1], states, own, sizes=sizes)
                states = [torch.where(alive, a, b) for a, b in zip(new, states, strict=True)]
                steps[t] = [torch.where(alive, s, 0) for s in states]
            outputs.append([torch.cat(s) for s in zip(*(steps[t] for t in range(T)), strict=True)])
            finals.append(states)
        x, *others = (torch.cat(parts, 2) for parts in zip(*outputs, strict=True))
    return [x, *(torch.cat(state) for state in zip(*finals, strict=True)), *others]


def flat(result: Any) -> list[Tensor]:
    """y, final states, sequences."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def run(rnn: Any, x: Any, hx: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    return flat(rnn(x, hx, return_states=True, **options))


@every
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("form", ["padded", "batch first", "lengths", "checkpoints"])
def test_equals_a_loop(name: str, bidirectional: bool, form: str) -> None:
    rnn = layer_of(name, bidirectional=bidirectional, batch_first=form == "batch first")
    x, states = data(rnn)
    inputs = [*(t.requires_grad_() for t in (x, *states)), *rnn.parameters()]
    expected = looped(rnn, x, states, LENGTHS if form == "lengths" else [T] * N)
    if form == "checkpoints":
        rnn.checkpoint_every = 3
    options = {"lengths": LENGTHS} if form == "lengths" else {}
    result = run(rnn, x.transpose(0, 1) if rnn.batch_first else x, states, **options)
    if rnn.batch_first:
        result = [t.transpose(0, 1) if t.shape[:2] == (N, T) else t for t in result]
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    pairs = zip(gradients(result, inputs), gradients(expected, inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    alone = [*result[: 1 + len(states)]]
    for a, b in zip(
        alone,
        flat(rnn(x.transpose(0, 1) if rnn.batch_first else x, states, **options)),
        strict=True,
    ):
        assert torch.equal(a.transpose(0, 1) if rnn.batch_first and a is alone[0] else a, b)


@every
def test_the_last_of_a_sequence_is_the_final_state_and_a_gradient_may_be_of_it_alone(
    name: str,
) -> None:
    rnn = layer_of(name)
    x, hx = data(rnn)
    _, states, sequences = rnn(x.requires_grad_(), hx, return_states=True)
    for state, sequence in zip(states[1:], sequences, strict=True):
        assert torch.equal(sequence[-1], state[-1])
        (grad,) = torch.autograd.grad(sequence[3].sum(), x, retain_graph=True)
        assert (grad[:4] != 0).any()
        assert (grad[4:] == 0).all()


def test_a_packed_sequence_an_unbatched_one_and_cuts() -> None:
    rnn = layer_of("LSTM", bidirectional=True)
    x, hx = data(rnn)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    _, _, (c,) = rnn(packed, hx, return_states=True)
    _, _, (padded,) = rnn(x, hx, lengths=LENGTHS, return_states=True)
    assert type(c) is PackedSequence
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(c)[0], padded)
    whole = run(rnn, x, hx)
    row = run(rnn, x[:, 1], tuple(h[:, 1] for h in hx))
    for a, b in zip(row, whole, strict=True):
        torch.testing.assert_close(a, b[:, 1], rtol=1e-12, atol=1e-12)
    reset = torch.zeros(T, N, dtype=torch.bool)
    reset[4] = True
    _, _, (c,) = rnn(x, hx, reset=reset, return_states=True)
    begin = tuple(h.clone() for h in hx)  # the reverse direction begins as before
    for h in begin:
        h[0::2] = 0
    _, _, (after,) = rnn(x[4:], begin, return_states=True)
    torch.testing.assert_close(c[4:], after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_layer_whose_only_state_is_its_output_has_no_more(name: str) -> None:
    y, _, others = getattr(cells, name)(C, H)(torch.zeros(T, N, C), return_states=True)
    assert y.shape == (T, N, H)
    assert others == ()
    with pytest.raises(TypeError, match="return_states"):
        getattr(rnnext, name)(C, H)(torch.zeros(T, N, C), return_states=True)


@pytest.mark.parametrize(
    ("T", "N", "H", "D"), [(9, 2, 200, 1), (70, 16, 24, 2), (5, 1, 700, 2), (3, 64, 300, 1)]
)
@pytest.mark.parametrize("cell", ["LSTM", "LayerNormBasicLSTM"])
def test_however_threads_share_the_work(T: int, N: int, H: int, D: int, cell: str) -> None:
    """Sequences or units, padded or packed, forward and backward."""
    torch.manual_seed(0)
    kind = rnnext.LSTM if cell == "LSTM" else getattr(cells, cell)
    rnn = kind(8, H, bidirectional=D == 2)
    x = torch.randn(T, N, 8)
    lengths = [1 + (5 * n + 3) % T for n in range(N)]

    def outputs(dtype: torch.dtype, run: Any, **options: Any) -> list[Tensor]:
        weights = [w.to(dtype) for w in rnn.parameters()]
        leaf = x.to(dtype).requires_grad_()
        which = (rnn._cell_name() if cell != "LSTM" else "LSTM") if run is ops.rnn else None
        name = which or (rnn.declaration if cell != "LSTM" else "LSTM")
        given = pack_padded_sequence(leaf, lengths, enforce_sorted=False)
        found = []
        for rows, sizes in ((leaf, None), (given.data, given.batch_sizes)):
            options = {"batch_sizes": sizes, "bidirectional": D == 2, "sequences": True}
            result = run(name, rows, [], weights, **options)
            found += [*result, *gradients(result, [leaf])]
        return found

    exact = outputs(torch.float64, reference.rnn)
    for a, b in zip(outputs(torch.float32, ops.rnn), exact, strict=True):
        assert (a - b).norm() < 5e-6 * b.norm()


@pytest.mark.parametrize("name", ["LSTM", "SLSTM"])
def test_derivatives_of_every_order_and_mode(name: str) -> None:
    torch.manual_seed(0)
    rnn = (rnnext.LSTM if name == "LSTM" else ZOO[name])(C, 2, 2, dtype=torch.float64)
    x = torch.randn(3, 2, C, dtype=torch.float64, requires_grad=True)

    def of(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(dict(rnn.named_parameters()), weights, strict=True))
        options = {"return_states": True, "lengths": [3, 2]}
        return tuple(flat(torch.func.functional_call(rnn, named, (x,), options)))

    inputs = (x, *rnn.parameters())
    assert gradcheck(of, inputs, check_forward_ad=True)
    assert gradgradcheck(of, inputs)

    def loss(x: Tensor) -> Tensor:
        return sum((part**2).sum() for part in rnn(x[:, None], return_states=True)[2])  # type: ignore[return-value]

    rows = x.detach().transpose(0, 1)
    each = torch.func.vmap(torch.func.grad(loss))(rows)
    for row, grad in zip(rows, each, strict=True):
        torch.testing.assert_close(torch.func.grad(loss)(row), grad, rtol=1e-11, atol=1e-11)
    hessian = torch.func.hessian(loss)(rows[0])
    again = torch.autograd.functional.hessian(loss, rows[0])
    torch.testing.assert_close(hessian, again, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["LSTM", "SLSTM"])
def test_opcheck(name: str) -> None:
    rnn = layer_of(name)
    x, hx = data(rnn)
    cell = (rnn._cell_name() if name == "SLSTM" else "LSTM") + ".states"
    weights = [w.detach().clone().requires_grad_() for w in rnn.parameters()]
    arguments = (cell, x.requires_grad_(), hx, weights, None, None, 2, False, 0.0, [])
    torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)
    torch.library.opcheck(
        torch.ops.rnnext.rnn_train.default, arguments, test_utils="test_faketensor"
    )


def test_compiled_whole_and_in_half_precision() -> None:
    rnn = layer_of("LSTM", bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend=counter, dynamic=True)
    for steps, n in (
        (13, 7),
        (9, 12),
        (17, 3),
    ):  # no two sizes the same, which torch would take for one
        x = torch.randn(steps, n, C, dtype=torch.float64, requires_grad=True)
        result = flat(compiled(x, return_states=True))
        expected = flat(rnn(x, return_states=True))
        for a, b in zip(result, expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(*(gradients(r, [x])[0] for r in (result, expected)))
    assert counter.frame_count <= 2
    torch._dynamo.reset()
    short = rnn.to(torch.bfloat16)(x.bfloat16(), return_states=True)[2][0]
    assert short.dtype == torch.bfloat16
    assert (short.double() - expected[-1]).abs().max() < 0.05
