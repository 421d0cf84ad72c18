"""Layers of cells that users write: every form of input, what modules go through, errors."""

# ruff: noqa: RUF012

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnext
from rnnext import ops, reference
from rnnext.codegen import build

T, N, C, H = 5, 4, 3, 6
LENGTHS = [2, 5, 1, 4]


class LightGRU(rnnext.Recurrent):
    gates = ("z", "n")

    def step(z, n, h):  # type: ignore[no-untyped-def]
        z = torch.sigmoid(z)
        return z * h + (1 - z) * torch.relu(n)


class Peephole(rnnext.Recurrent):
    """An LSTM with a projection, peepholes and a constant: two states of two widths."""

    gates = ("i", "f", "g", "o")
    states = {"h": "proj_size", "c": "hidden_size"}
    params = {"p": 0.5, "q": rnnext.Param(), "s": rnnext.Param(nn.init.ones_, size="proj_size")}
    matrices = {"hr": ("proj_size", "hidden_size")}
    sizes = ("proj_size",)
    constants = {"bound": 1.0}

    @staticmethod
    def step(i, f, g, o, h, c, p, q, s, hr, bound):  # type: ignore[no-untyped-def]
        c = torch.sigmoid(f + p * c) * c + torch.sigmoid(i + q * c) * bound * torch.tanh(g)
        return h + s * torch.nn.functional.linear(torch.sigmoid(o) * torch.tanh(c), hr), c


class Zoneout(LightGRU):
    constants = {"zoneout": 0.25}
    noise = {"keep": rnnext.Bernoulli("zoneout")}

    def step(z, n, h, keep):  # type: ignore[no-untyped-def]
        return keep * h + (1 - keep) * LightGRU.step(z, n, h)


KINDS: list[tuple[Any, dict[str, Any]]] = [(LightGRU, {}), (Peephole, {"proj_size": 2})]
every_kind = pytest.mark.parametrize(
    ("kind", "sizes"), KINDS, ids=lambda k: getattr(k, "__name__", "")
)


def make(kind: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(*(args or (C, H)), **{"dtype": torch.float64, **options})


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data]
    return [t for part in result for t in leaves(part)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_every_form_of_input_gives_each_row_its_own_result(
    kind: Any, sizes: dict[str, int], batch_first: bool, given: bool
) -> None:
    layer = make(kind, num_layers=2, bidirectional=True, batch_first=batch_first, **sizes)
    widths = [sizes.get("proj_size", H), H][: len(layer.declaration.states)]
    x = torch.randn((N, T, C) if batch_first else (T, N, C), dtype=torch.float64)
    states = [torch.randn(4, N, width, dtype=torch.float64) for width in widths]

    def of(rows: Any) -> Any:
        """The states of some rows, as hx."""
        picked = tuple(s[:, rows] for s in states)
        return None if not given else picked if len(picked) > 1 else picked[0]

    everyone = slice(None)
    results = [layer(x, of(everyone), lengths=LENGTHS)]
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first, enforce_sorted=False)
    y, finals = layer(packed, of(everyone))
    results.append((pad_packed_sequence(y, batch_first, total_length=T)[0], finals))
    for n, end in enumerate(LENGTHS):
        row = (x[n] if batch_first else x[:, n])[:end]
        y_row, finals_row = layer(row, of(n))
        assert y_row.shape == (end, 2 * widths[0])
        one = row[None] if batch_first else row[:, None]
        y_one, finals_one = layer(one, of(slice(n, n + 1)))
        close(y_one.squeeze(0 if batch_first else 1), y_row)
        for a, b in zip(leaves(finals_one), leaves(finals_row), strict=True):
            close(a.squeeze(1), b)
        for y, finals in results:
            mine = y[n] if batch_first else y[:, n]
            close(mine[:end], y_row)
            assert (mine[end:] == 0).all()
            for a, b in zip(leaves(finals), leaves(finals_row), strict=True):
                close(a[:, n], b)
    whole = layer(x, of(everyone))
    for a, b in zip(leaves(layer(x, of(everyone), lengths=[T] * N)), leaves(whole), strict=True):
        close(a, b)
    assert isinstance(whole[1], tuple) == (len(widths) > 1)


def test_two_layers_in_two_directions_are_the_loop_written_out() -> None:
    layer = make(Peephole, num_layers=2, bidirectional=True, proj_size=2, bound=0.5)
    x = torch.randn(T, N, C, dtype=torch.float64)
    y, (h_n, c_n) = layer(x)
    rows, k = list(x), 0
    for level in range(2):
        outputs: list[list[Tensor]] = []
        for suffix in ("", "_reverse"):
            w = {
                name.removesuffix(f"_l{level}{suffix}"): p
                for name, p in layer.named_parameters()
                if name.endswith(f"_l{level}{suffix}")
            }
            h, c = x.new_zeros(N, 2), x.new_zeros(N, H)
            out = []
            for row in reversed(rows) if suffix else rows:
                gates = row @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
                rest = (h, c, w["p"], w["q"], w["s"], w["weight_hr"], 0.5)
                h, c = Peephole.step(*gates.chunk(4, 1), *rest)
                out.append(h)
            outputs.append(out[::-1] if suffix else out)
            close(h_n[k], h)
            close(c_n[k], c)
            k += 1
        rows = [torch.cat(pair, 1) for pair in zip(*outputs, strict=True)]
    close(y, torch.stack(rows))


def test_a_cell_of_nns_equals_nn() -> None:
    class Mine(rnnext.Recurrent):
        gates = ("r", "z")
        apart_gates = ("n",)

        def step(r, z, n_x, n_h, h):  # type: ignore[no-untyped-def]
            n = torch.tanh(n_x + torch.sigmoid(r) * n_h)
            return n + torch.sigmoid(z) * (h - n)

    options = {"num_layers": 2, "bidirectional": True}
    mine, theirs = make(Mine, **options), make(nn.GRU, **options)
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    x = torch.randn(T, N, C, dtype=torch.float64)
    grads = []
    for layer in (mine, theirs):
        y, h_n = layer(x)
        (y.square().sum() + h_n.sum()).backward()
        grads.append([y, h_n, *(p.grad for p in layer.parameters())])
    for a, b in zip(*grads, strict=True):
        close(a, b)


def test_parameters_have_the_names_shapes_and_values_declared() -> None:
    layer = make(Peephole, num_layers=2, bidirectional=True, proj_size=2)
    shapes = {
        "weight_ih": (4 * H, C),
        "weight_hh": (4 * H, 2),
        "bias_ih": (4 * H,),
        "bias_hh": (4 * H,),
        "weight_hr": (2, H),
        "p": (H,),
        "q": (H,),
        "s": (2,),
    }
    expected = {}
    for level in range(2):
        for suffix in (f"_l{level}", f"_l{level}_reverse"):
            expected |= {name + suffix: shape for name, shape in shapes.items()}
        shapes["weight_ih"] = (4 * H, 4)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == expected
    for name, p in layer.named_parameters():
        if name[0] in "ps":
            assert (p == {"p": 0.5, "s": 1.0}[name[0]]).all()
        else:
            assert p.abs().max() <= H**-0.5
            assert p.abs().max() > 0
    plain = make(Peephole, bias=False, proj_size=2)
    assert not any("bias" in name for name, _ in plain.named_parameters())
    with torch.no_grad():
        for p in plain.parameters():
            p.fill_(9)
    plain.reset_parameters()
    assert all(p.abs().max() <= 1 for p in plain.parameters())


def test_repr_shows_what_is_no_default() -> None:
    assert repr(LightGRU(C, H)) == f"LightGRU({C}, {H})"
    layer = Peephole(C, H, 2, False, True, 0.5, True, proj_size=2, bound=2)
    assert repr(layer) == (
        f"Peephole({C}, {H}, proj_size=2, num_layers=2, bias=False, batch_first=True, "
        "dropout=0.5, bidirectional=True, bound=2.0)"
    )
    assert repr(LightGRU(C, H, heads=2)) == f"LightGRU({C}, {H}, heads=2)"


def test_noise_is_drawn_in_training_by_torchs_generator_and_not_in_eval() -> None:
    layer = make(Zoneout, num_layers=2, bidirectional=True, zoneout=0.5)
    x = torch.randn(T, N, C, dtype=torch.float64)
    torch.manual_seed(3)
    first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], first)
    torch.manual_seed(3)
    seed = torch.randint(2**63 - 1, (1,))
    weights = list(layer.parameters())
    options = {"num_layers": 2, "bidirectional": True}
    close(first, reference.rnn(layer.declaration, x, [], weights, seed=seed, **options)[0])
    layer.eval()
    before = torch.get_rng_state()
    y = layer(x)[0]
    assert torch.equal(torch.get_rng_state(), before)
    close(y, reference.rnn(layer.declaration, x, [], weights, **options)[0])
    with pytest.raises(ValueError, match=r"Zoneout.noise\['keep'\]: p=2.0: expected a prob"):
        Zoneout(C, H, zoneout=2.0)


def test_heads_divide_the_recurrent_matrix() -> None:
    layer = make(LightGRU, num_layers=2, heads=3)
    assert layer.weight_hh_l0.shape == (2 * H, H // 3)
    x = torch.randn(T, N, C, dtype=torch.float64)
    y, _ = layer(x)
    weights = list(layer.parameters())
    close(y, reference.rnn(layer.declaration, x, [], weights, num_layers=2)[0])
    for heads in (4, 12):
        with pytest.raises(ValueError, match=rf"got heads={heads}: expected a divisor of hidden_"):
            LightGRU(C, H, heads=heads)
    with pytest.raises(ValueError, match=r"width of the first state \(2\)"):
        Peephole(C, H, heads=2, proj_size=2)

    class Sum(rnnext.Recurrent):
        input_gates = ("u",)

        def step(u, h):  # type: ignore[no-untyped-def]
            return h + u

    with pytest.raises(ValueError, match="heads=2, but Sum has no recurrent matrix"):
        Sum(C, H, heads=2)
    layer = make(Sum)
    assert [*layer.state_dict()] == ["weight_ih_l0", "bias_ih_l0"]
    close(layer(x)[0], (x @ layer.weight_ih_l0.T + layer.bias_ih_l0).cumsum(0))


def test_cells_are_inherited_and_changed_in_subclasses() -> None:
    class Base(rnnext.Recurrent):
        """Declares nothing."""

        def halved(self, x: Tensor) -> Tensor:
            return self(x)[0] / 2

    class First(Base):
        gates = ("a",)
        constants = {"leak": 0.5}

        def step(a, h, leak):  # type: ignore[no-untyped-def]
            return (1 - leak) * h + leak * torch.tanh(a)

    class Second(First):
        constants = {"leak": 0.25}

    class Third(Second):
        def step(a, h, leak):  # type: ignore[no-untyped-def]
            return leak * torch.sin(a)

    for empty in (Base, rnnext.Recurrent):
        with pytest.raises(TypeError, match=f"{empty.__name__} declares no cell: make a subclass"):
            empty(C, H)
    assert First(C, H).leak == 0.5
    assert Second(C, H).declaration.constants == {"leak": 0.25}
    assert Second.step is First.step
    ones = torch.ones(1)
    assert torch.equal(Third.step(ones, ones, 2), 2 * torch.sin(ones))
    assert torch.equal(Third(C, H).step(ones, ones, 2), 2 * torch.sin(ones))
    x = torch.randn(T, N, C, dtype=torch.float64)
    layer = make(First)
    close(layer.halved(x), layer(x)[0] / 2)
    with pytest.raises(TypeError, match="Half has no step"):
        type("Half", (Base,), {"gates": ("a",)})


def test_a_kernel_is_asked_for_once_for_each_value_of_the_constants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Leaky(rnnext.Recurrent):
        gates = ("a",)
        constants = {"leak": 0.5}

        def step(a, h, leak):  # type: ignore[no-untyped-def]
            return (1 - leak) * h + leak * torch.tanh(a)

    asked, ran = [], []

    def kernel(declaration: Any) -> str | None:
        asked.append(declaration)
        return None if declaration.constants["leak"] == 0.5 else "Leaky_1"

    def rnn(cell: Any, *args: Any, **options: Any) -> list[Tensor]:
        ran.append(cell)
        return reference.rnn(asked[-1] if cell == "Leaky_1" else cell, *args, **options)

    monkeypatch.setattr(build, "kernel", kernel)
    monkeypatch.setattr(ops, "rnn", rnn)
    x = torch.randn(T, N, C, dtype=torch.float64)
    layer, other = make(Leaky), make(Leaky, leak=1)
    assert not asked
    for _ in range(2):
        results = [layer(x)[0], make(Leaky, leak=0.5)(x)[0], other(x)[0]]
    assert asked == [layer.declaration, other.declaration]
    assert ran == [layer.declaration, layer.declaration, "Leaky_1"] * 2
    # A constant that is changed later is the one that counts.
    layer.leak = 1.0
    assert torch.equal(layer(x)[0], results[2])
    assert not torch.equal(results[0], results[2])


@every_kind
def test_gradients_and_second_gradients(kind: Any, sizes: dict[str, int]) -> None:
    layer = make(kind, 2, 3, **sizes)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, weights, strict=True))
        return tuple(leaves(torch.func.functional_call(layer, named, (x,))))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
