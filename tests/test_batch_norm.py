"""cells.BatchNormLSTM beside the paper's equations, written for one sequence of steps at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnext.cells import BatchNormLSTM

T, N, C, H = 6, 4, 3, 5
LENGTHS = [3, 6, 2, 6]


def layer_of(**options: Any) -> BatchNormLSTM:
    torch.manual_seed(0)
    layer = BatchNormLSTM(C, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            value.normal_(1.0 if name.startswith("gain") else 0.0, 0.5)
    return layer


def data(layer: BatchNormLSTM) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    h, c = torch.randn(2, runs, N, H, dtype=torch.float64).unbind(0)
    return torch.randn(T, N, C, dtype=torch.float64), (h, c)


def papers(
    layer: BatchNormLSTM, x: Tensor, hx: tuple[Tensor, Tensor], lengths: list[int]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """y and final states, and the statistics of each norm and step: [T, width], unbiased."""
    statistics: dict[str, Tensor] = {}

    def norm(v: Tensor, alive: Tensor, key: str, t: int, gain: Tensor) -> Tensor:
        if layer.training and alive.sum() > 1:
            mean, var = v[alive].mean(0), v[alive].var(0, unbiased=False)
            count = int(alive.sum())
            kept = (mean.detach(), var.detach() * count / (count - 1))
            for kind, value in zip(("mean", "var"), kept, strict=True):
                name = f"{kind}_{key}"
                statistics.setdefault(name, torch.full((T, len(value)), torch.nan).double())
                statistics[name][t] = value
        else:
            place = min(t, layer.max_length - 1)
            mean, var = (layer.get_buffer(f"{kind}_{key}")[place] for kind in ("mean", "var"))
        return (v - mean) / (var + layer.eps).sqrt() * gain

    finals: list[tuple[Tensor, Tensor]] = []
    ends = torch.tensor(lengths)
    for k in range(layer.num_layers):
        outputs = []
        for d in range(2 if layer.bidirectional else 1):
            key = f"l{k}" + ("_reverse" if d else "")
            w = {
                n.removesuffix(f"_{key}"): p
                for n, p in layer.named_parameters()
                if n.endswith(f"_{key}")
            }
            h, c = (state[len(finals)] for state in hx)
            ys: list[list[Tensor]] = [[torch.zeros(H).double() for _ in range(N)] for _ in range(T)]
            for t in range(T):
                alive = t < ends
                at = [int(end) - 1 - t if d else t for end in ends]
                x_t = torch.stack(
                    [x[at[n], n] if alive[n] else torch.zeros_like(x[0, n]) for n in range(N)]
                )
                a = norm(x_t @ w["weight_ih"].T, alive, f"x_{key}", t, w["gain_x"]) + w["bias"]
                a = a + norm(h @ w["weight_hh"].T, alive, f"h_{key}", t, w["gain_h"])
                i, f, g, o = a.chunk(4, 1)
                new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                normed = norm(new_c, alive, f"c_{key}", t, w["gain_c"]) + w["shift_c"]
                new_h = o.sigmoid() * normed.tanh()
                h, c = (torch.where(alive[:, None], a, b) for a, b in ((new_h, h), (new_c, c)))
                for n in range(N):
                    if alive[n]:
                        ys[at[n]][n] = h[n]
            outputs.append(torch.stack([torch.stack(y) for y in ys]))
            finals.append((h, c))
        x = torch.cat(outputs, 2)
    h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
    return [x, h_n, c_n], statistics


def flat(result: Any) -> list[Tensor]:
    y, (h_n, c_n) = result
    return [y, h_n, c_n]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("lengths", [None, LENGTHS, [1, 5, 2, 3]], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_equals_the_paper(training: bool, lengths: Any, options: dict[str, Any]) -> None:
    layer = layer_of(max_length=4, **options)
    x, hx = data(layer)
    layer(x, hx, lengths=lengths)  # so that the averages are other than 0 and 1
    layer.train(training)
    leaves = [t.requires_grad_() for t in (x, *hx)]
    inputs = [*leaves, *layer.parameters()]
    expected, _ = papers(layer, x, hx, lengths or [T] * N)
    result = flat(layer(x, hx, lengths=lengths))
    grads = [torch.randn_like(o) for o in expected]
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(o, inputs, grads) for o in (result, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=str)
@pytest.mark.parametrize("max_length", [T + 2, T, 3, 1])
def test_running_statistics_are_those_of_each_step(lengths: Any, max_length: int) -> None:
    layer = layer_of(max_length=max_length, momentum=0.25)
    x, hx = data(layer)
    _, statistics = papers(layer, x, hx, lengths or [T] * N)
    layer(x, hx, lengths=lengths)
    for name, values in statistics.items():
        running = layer.get_buffer(name)
        start = float(name.startswith("var"))
        for t in range(max_length):
            if t < min(T, max_length - 1):
                expected = 0.75 * start + 0.25 * values[t]
                torch.testing.assert_close(running[t], expected, rtol=1e-10, atol=1e-12)
            elif t >= T:
                assert (running[t] == start).all()
        if max_length == T:
            expected = 0.75 * start + 0.25 * values[-1]
            torch.testing.assert_close(running[-1], expected, rtol=1e-10, atol=1e-12)
        if max_length < T:
            between = [values[t] for t in range(max_length - 1, T)]
            low, high = torch.stack(between).aminmax(dim=0)
            assert (running[-1] >= torch.minimum(low, torch.full_like(low, start)) - 1e-9).all()
            assert (running[-1] <= torch.maximum(high, torch.full_like(high, start)) + 1e-9).all()


def test_statistics_of_a_stationary_input_make_eval_mode_equal_training() -> None:
    layer = layer_of(max_length=T, momentum=1.0)
    x, hx = data(layer)
    expected = flat(layer(x, hx))
    biased = (N - 1) / N  # the averages are of unbiased variances
    for name, buffer in layer.named_buffers():
        if name.startswith("var"):
            buffer.mul_(biased)
    for a, b in zip(flat(layer.eval()(x, hx)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_steps_beyond_max_length_take_the_last_statistics_in_eval_mode() -> None:
    layer = layer_of(max_length=3)
    x, hx = data(layer)
    layer(x, hx)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    long = torch.cat([x, x])
    expected, _ = papers_of_length(layer.eval(), long, hx)
    torch.testing.assert_close(layer(long, hx)[0], expected, rtol=1e-10, atol=1e-10)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])


def papers_of_length(
    layer: BatchNormLSTM, x: Tensor, hx: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Eval mode step by step, each with the buffers' row that is its own moved to the front."""
    ys, state = [], hx
    for t in range(len(x)):
        one = layer_of(max_length=1).eval()
        one.load_state_dict(
            {
                name: value[min(t, layer.max_length - 1)][None]
                if name[:4] in ("mean", "var_")
                else value
                for name, value in layer.state_dict().items()
            }
        )
        y, state = one(x[t : t + 1], state)
        ys.append(y)
    return torch.cat(ys), state


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training: bool) -> None:
    layer = layer_of(max_length=4).train(training)
    x, hx = data(layer)

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        options = {"lengths": [3, 4, 2, 4]}
        result = torch.func.functional_call(layer, (named, buffers), (x[:4], (h, c)), options)
        return tuple(flat(result))

    inputs = [t.requires_grad_() for t in (x, *hx)] + list(layer.parameters())
    assert gradcheck(run, inputs)
    if not training:
        assert gradgradcheck(run, inputs)


def test_forms_of_input_and_the_state_dict() -> None:
    layer = layer_of(batch_first=True)
    x, hx = data(layer)
    y, states = layer(x.transpose(0, 1), hx, lengths=LENGTHS)
    layer.eval()
    again = BatchNormLSTM(C, H, dtype=torch.float64).eval()
    again.load_state_dict(layer.state_dict())
    assert any(name.startswith("mean_x_l0") for name in layer.state_dict())
    y, states = layer(x.transpose(0, 1), hx, lengths=LENGTHS)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    y_packed, states_packed = again(packed, hx)
    assert torch.equal(pad_packed_sequence(y_packed)[0], y.transpose(0, 1))
    for a, b in zip(states, states_packed, strict=True):
        assert torch.equal(a, b)
    assert (y.transpose(0, 1)[3:, 0] == 0).all()
    assert torch.equal(again(x)[0], again(x, tuple(torch.zeros_like(s) for s in hx))[0])
    # gains begin at 0.1
    assert (BatchNormLSTM(C, H).gain_h_l0 == 0.1).all()
    assert repr(BatchNormLSTM(3, 4, 2, max_length=9)).endswith("(3, 4, num_layers=2, max_length=9)")


def test_what_it_refuses() -> None:
    layer = layer_of()
    x, hx = data(layer)
    with pytest.raises(ValueError, match="two sequences at least in training"):
        layer(x[:, :1])
    assert layer.eval()(x[:, :1])[0].shape == (T, 1, H)
    with pytest.raises(ValueError, match="Expected input to be 3D, got 2D"):
        layer(x[:, 0])
    with pytest.raises(ValueError, match="expected 3 features"):
        layer(x[..., :2])
    with pytest.raises(ValueError, match="which has its own"):
        layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"lengths must be 4 integers in 1\.\.6"):
        layer(x, lengths=[7, 1, 1, 1])
    with pytest.raises(RuntimeError, match=r"Expected h_0 size \(1, 4, 5\)"):
        layer(x, (hx[0][:, :2], hx[1]))
    with pytest.raises(ValueError, match="max_length must be greater than zero"):
        BatchNormLSTM(3, 4, max_length=0)
    with pytest.raises(TypeError, match="hidden_size should be of type int"):
        BatchNormLSTM(3, "4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="momentum should be a number in range"):
        BatchNormLSTM(3, 4, momentum=2.0)
