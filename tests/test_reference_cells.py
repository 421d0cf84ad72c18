"""The reference loop on cells of every kind: what reaches the step, layers, heads, noise."""

import pytest
import torch
from torch import Tensor

from rnnext import reference
from rnnext.cell import Dropout, Normal, Param, Uniform, declare
from rnnext.noise import noise_values


def everything(  # type: ignore[no-untyped-def]
    o, f, n_x, n_h, s, u, c, m, h, keep, scale, up, down, mask, noisy, leak, units, hidden_size
):
    """Every kind of thing a step can take; the width of h is `units`."""
    m = torch.maximum(m, keep * s.mean(1, keepdim=True))
    c = f.sigmoid() * c * mask + u * (n_x + o.sigmoid() * n_h).tanh() + noisy / hidden_size
    wide = torch.nn.functional.linear(h, up)
    return leak * h + scale * ((c.tanh() * wide) @ down.T) / units, c + s.exp() * m, m


EVERYTHING = declare(
    "EVERYTHING",
    everything,
    gates=("o", "f"),
    apart_gates=("n",),
    input_gates=("s", "u"),
    states={"h": "units", "c": "hidden_size", "m": 1},
    params={"keep": Param(size=1), "scale": Param(1.0, size="units")},
    matrices={"up": ("hidden_size", "units"), "down": ("units", "hidden_size")},
    sizes=("units",),
    constants={"leak": 0.5, "p": 0.25},
    noise={"mask": Dropout("p", per="sequence"), "noisy": Normal(0.0, 0.1)},
)


def everything_weights(bias: bool, runs: int, later: int) -> list[Tensor]:
    """Weights of `runs` directions, 3 -> hidden size 4, units 2; in later ones `later` inputs."""
    sizes = {"hidden_size": 4, "units": 2}
    shapes = [
        s for k in range(runs) for s in EVERYTHING.weight_shapes(bias, later if k else 3, sizes)
    ]
    return [torch.randn(shape, dtype=torch.float64) / 2 for shape in shapes]


@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_thing_reaches_the_step(bias: bool) -> None:
    torch.manual_seed(0)
    weights = everything_weights(bias, 1, 0)
    names = EVERYTHING.weight_names(bias)
    biases = ["bias_ih", "bias_hh"] if bias else []
    more = ["weight_up", "weight_down", "keep", "scale"]
    assert names == ["weight_ih", "weight_hh", *biases, *more]
    w = dict(zip(names, weights, strict=True))
    x, seed = torch.randn(3, 2, 3, dtype=torch.float64), torch.tensor(4)
    results = reference.rnn(EVERYTHING, x, [], weights, seed=seed, sizes=(2,))
    assert [tuple(r.shape) for r in results] == [(3, 2, 2), (1, 2, 2), (1, 2, 4), (1, 2, 1)]
    h, c, m = (x.new_zeros(2, width) for width in (2, 4, 1))
    noise = list(EVERYTHING.noise.values())
    mask = noise_values(noise[0], 0, seed, 0, 2, 4, x)
    noisy = noise_values(noise[1], 1, seed, 0, 6, 4, x).view(3, 2, 4)
    for t in range(3):
        in_o, in_f, n_x, s, u = (x[t] @ w["weight_ih"].T + (w["bias_ih"] if bias else 0)).chunk(
            5, 1
        )
        h_o, h_f, n_h = (h @ w["weight_hh"].T + (w["bias_hh"] if bias else 0)).chunk(3, 1)
        parts = (in_o + h_o, in_f + h_f, n_x, n_h, s, u, c, m, h, w["keep"], w["scale"])
        further = (w["weight_up"], w["weight_down"], mask, noisy[t], 0.5, 2, 4)
        h, c, m = everything(*parts, *further)
        torch.testing.assert_close(results[0][t], h, rtol=1e-12, atol=1e-12)
    for a, b in zip(results[1:], (h, c, m), strict=True):
        torch.testing.assert_close(a[0], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [None, [3, 2, 2, 1]])
def test_layers_and_directions_of_any_cell_are_runs_of_one(sizes: list[int] | None) -> None:
    """Noise too: it depends on layer and direction, so here there is none."""
    torch.manual_seed(0)
    weights = everything_weights(True, 4, 4)
    per = len(weights) // 4
    weights[per] = torch.randn_like(weights[0])  # the reverse direction of the first layer reads x
    batch_sizes = None if sizes is None else torch.tensor(sizes)
    x = torch.randn((4, 3, 3) if sizes is None else (sum(sizes), 3), dtype=torch.float64)
    h0 = [torch.randn(4, 3, width, dtype=torch.float64) for width in (2, 4, 1)]
    options = {"batch_sizes": batch_sizes, "sizes": (2,)}
    stack = reference.rnn(EVERYTHING, x, h0, weights, num_layers=2, bidirectional=True, **options)
    alive = sizes or [3] * 4

    def reverse(rows: Tensor) -> Tensor:
        """Each sequence's own rows, last first."""
        steps = rows.reshape(-1, rows.size(-1)).split(alive)
        ends = [sum(n > row for n in alive) for row in range(alive[0])]
        turned = [
            torch.stack([steps[ends[row] - 1 - t][row] for row in range(n)])
            for t, n in enumerate(alive)
        ]
        return torch.cat(turned).view_as(rows)

    y, finals = x, []
    for layer in range(2):
        outputs = []
        for direction in range(2):
            k = 2 * layer + direction
            given = reverse(y) if direction else y
            start = [s[k : k + 1] for s in h0]
            out, *states = reference.rnn(
                EVERYTHING, given, start, weights[k * per : (k + 1) * per], **options
            )
            outputs.append(reverse(out) if direction else out)
            finals.append(states)
        y = torch.cat(outputs, -1)
    torch.testing.assert_close(stack[0], y, rtol=1e-12, atol=1e-12)
    for a, b in zip(stack[1:], zip(*finals, strict=True), strict=True):
        torch.testing.assert_close(a, torch.cat(b), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_derivatives_of_every_kind_of_thing_pass_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, dtype=torch.float64)
    h0 = [torch.randn(1, 2, width, dtype=torch.float64) for width in (2, 4, 1)]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        options = {"batch_sizes": torch.tensor([2, 1]), "seed": torch.tensor([7]), "sizes": (2,)}
        return tuple(reference.rnn(EVERYTHING, x, rest[:3], rest[3:], **options))

    leaves = [t.requires_grad_() for t in (x, *h0, *everything_weights(True, 1, 0))]
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_transforms_go_through_any_cell() -> None:
    torch.manual_seed(0)
    weights = everything_weights(True, 1, 0)
    x, dx = torch.randn(2, 5, 3, 2, 3, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return reference.rnn(EVERYTHING, x, [], weights, sizes=(2,))[0]

    mapped = torch.func.vmap(run)(x)
    torch.testing.assert_close(mapped, torch.stack([run(one) for one in x]))
    _, tangent = torch.func.jvp(run, (x[0],), (dx[0],))
    step = 1e-6
    numeric = (run(x[0] + step * dx[0]) - run(x[0] - step * dx[0])) / (2 * step)
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_are_a_block_diagonal_matrix(mode: str, bias: bool) -> None:
    torch.manual_seed(0)
    cell, hidden, heads = reference.CELLS[mode], 6, 3
    gates, units = cell.gate_count, hidden // heads
    weights = [
        torch.randn(shape, dtype=torch.float64)
        for shape in cell.weight_shapes(bias, 4, {"hidden_size": hidden}, heads)
    ]
    assert weights[1].shape == (gates * hidden, units)
    dense = torch.zeros(gates * hidden, hidden, dtype=torch.float64)
    for row in range(gates * hidden):
        head = row % hidden // units
        dense[row, head * units : (head + 1) * units] = weights[1][row]
    for n in (5, 0):
        x = torch.randn(3, n, 4, dtype=torch.float64)
        ours = reference.rnn(mode, x, [], weights)
        wide = reference.rnn(mode, x, [], [weights[0], dense, *weights[2:]])
        for a, b in zip(ours, wide, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_cell_of_input_gates_alone_has_no_recurrent_matrix() -> None:
    cell = declare("SUM", lambda u, h: h + u, input_gates=("u",))
    assert cell.weight_names(True) == ["weight_ih", "bias_ih"]
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    w, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    y, _ = reference.rnn(cell, x, [], [w, b])
    torch.testing.assert_close(y, (x @ w.T + b).cumsum(0))


@pytest.mark.parametrize("sizes", [None, [3, 3, 2, 1]])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_noise_of_a_layer_is_by_packed_row_or_by_sequence(
    per: str, sizes: list[int] | None
) -> None:
    cell = declare(
        "NOISY",
        lambda a, v: 0 * a + v,
        gates=("a",),
        noise={"v": Uniform(0.0, 1.0, per=per)},
    )
    alive, seed = sizes or [3] * 4, torch.tensor(11)
    x = torch.zeros((sum(alive), 2) if sizes else (4, 3, 2), dtype=torch.float64)
    weights = [x.new_zeros(5, width) for width in (2, 5, 2, 5, 10, 5, 10, 5)]
    options = {"num_layers": 2, "bidirectional": True}
    batch_sizes = None if sizes is None else torch.tensor(sizes)
    run = {"batch_sizes": batch_sizes, **options}
    y = reference.rnn(cell, x, [], weights, seed=seed, **run)[0].reshape(-1, 10)
    for direction in range(2):
        place = 2 + direction
        rows = sum(alive) if per == "step" else 3
        drawn = noise_values(cell.noise["v"], 0, seed, place, rows, 5, x)
        if per == "sequence":
            drawn = torch.cat([drawn[:n] for n in alive])
        assert torch.equal(y[:, 5 * direction : 5 * direction + 5], drawn)
    assert torch.equal(y, reference.rnn(cell, x, [], weights, seed=seed, **run)[0].view(-1, 10))
    assert (reference.rnn(cell, x, [], weights, **run)[0] == 0.5).all()
