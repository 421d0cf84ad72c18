"""rnnext.cells beside the steps of their papers (cells_reference.py), and what their options do."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cells_reference
import pytest
import torch
from cases import error
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnext
from rnnext import cells, reference
from rnnext.noise import noise_values

Config = tuple[str, dict[str, Any]]

ZONEOUT = {"zoneout_h": 0.2, "zoneout_c": 0.4}
NOISY_LSTM: Config = ("LSTM", {**ZONEOUT, "recurrent_dropout": 0.25})
NOISY_GRU: Config = ("GRU", {"zoneout_h": 0.3, "recurrent_dropout": 0.25})
HARD = {"gate_function": "keras_hard_sigmoid", "activation": "softsign"}
VARIATIONAL: Config = ("VariationalLSTM", {"variational_dropout": 0.25})
EVERY: list[Config] = [
    *((name, {}) for name in cells.CELLS if not name.startswith(("Variational", "BatchNorm"))),
    NOISY_LSTM,
    ("LSTM", {**HARD, "cell_clip": 0.5, "state_clip": 0.3}),
    ("LayerNormLSTM", {**ZONEOUT, "recurrent_dropout": 0.25}),
    ("SLSTM", {"heads": 3, "forget_gate_function": "exp"}),
    NOISY_GRU,
    ("GRU", {**HARD, "state_clip": 0.3}),
    ("RNN", {"zoneout_h": 0.3}),
    VARIATIONAL,
    ("VariationalGRU", {"variational_dropout": 0.25}),
]
every = pytest.mark.parametrize("config", EVERY, ids=lambda c: "-".join([c[0], *map(str, c[1])]))
NORMED = [name for name in cells.CELLS if name.startswith("LayerNorm") or name == "DreamerGRU"]


def layer_of(config: Config, *sizes: int, **more: Any) -> Any:
    """A layer with weights that are all drawn, in float64."""
    name, options = config
    torch.manual_seed(0)
    layer = getattr(cells, name)(*sizes, **options, **more).double()
    with torch.no_grad():
        for key, weight in layer.named_parameters():
            weight.normal_(1.0 if key.startswith("gain") else 0.0, 0.5)
    return layer


def states_of(layer: Any, n: int) -> list[Tensor]:
    """Drawn initial states; of an sLSTM some that it can come to."""
    names = layer.declaration.states
    states = [torch.randn(1, n, layer.hidden_size, dtype=torch.float64) for _ in names]
    if type(layer) is cells.SLSTM:
        states[2] = states[2].abs() + 1
    return states


def masks_of(layer: Any, x: Tensor, seed: Tensor | None) -> list[dict[str, Tensor]]:
    """The layer's masks at each step; without a seed their means."""
    steps, n, _ = x.shape
    found: list[dict[str, Tensor]] = [{} for _ in range(steps)]
    for k, (name, noise) in enumerate(layer.declaration.noise.items()):
        rows = n if noise.per == "sequence" else steps * n
        values = noise_values(noise, k, seed, 0, rows, layer.hidden_size, x)
        of_steps = values.expand(rows, layer.hidden_size).view(-1, n, layer.hidden_size)
        for t in range(steps):
            found[t][name] = of_steps[t % len(of_steps)]
    return found


def drawn(dice: int) -> Tensor:
    """The seed that a layer draws after manual_seed(dice)."""
    torch.manual_seed(dice)
    return torch.randint(2**63 - 1, (1,))


def results(layer: Any, outputs: list[Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and all gradients, by name."""
    names = ["y", *(f"{name}_n" for name in layer.declaration.states)]
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    found = torch.autograd.grad(outputs, inputs, grads, materialize_grads=True)
    leaves = ["dx", *(f"d{name}0" for name in layer.declaration.states)]
    leaves += [f"d{name}" for name, _ in layer.named_parameters()]
    return dict(zip([*names, *leaves], [*outputs, *found], strict=True))


def ours(layer: Any, x: Tensor, states: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    layer.to(dtype)
    leaves = [t.to(dtype).clone().requires_grad_() for t in (x, *states)]
    torch.manual_seed(3)
    y, final = layer(leaves[0], leaves[1] if len(states) == 1 else tuple(leaves[1:]))
    final = (final,) if isinstance(final, Tensor) else final
    found = results(layer, [y, *final], [*leaves, *layer.parameters()])
    layer.double()
    return found


def papers(layer: Any, x: Tensor, states: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    layer.to(dtype)
    leaves = [t.to(dtype).clone().requires_grad_() for t in (x, *states)]
    masks = masks_of(layer, leaves[0].detach(), drawn(3) if layer.training else None)
    weights = {name.removesuffix("_l0"): w for name, w in layer.named_parameters()}
    y, *final = cells_reference.run(
        cells_reference.STEPS[type(layer).__name__],
        SimpleNamespace(**weights),
        layer._constants(),
        leaves[0],
        [leaf[0] for leaf in leaves[1:]],
        masks,
    )
    found = results(layer, [y, *(s[None] for s in final)], [*leaves, *layer.parameters()])
    layer.double()
    return found


@every
@pytest.mark.parametrize(
    ("steps", "n", "inputs", "hidden"), [(6, 3, 4, 9), (1, 2, 3, 21), (5, 2, 3, 129)]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_equals_the_paper(
    config: Config, steps: int, n: int, inputs: int, hidden: int, training: bool
) -> None:
    layer = layer_of(config, inputs, hidden).train(training)
    x, states = torch.randn(steps, n, inputs, dtype=torch.float64), states_of(layer, n)
    expected = papers(layer, x, states, torch.float64)
    exact = ours(layer, x, states, torch.float64)
    for name, value in expected.items():
        assert error(exact[name], value) < 1e-11, name
    found = ours(layer, x, states, torch.float32)
    rounded = papers(layer, x, states, torch.float32)
    for name, value in expected.items():
        bound = max(1e-5, 2 * error(rounded[name], value))  # large weights make large sums
        assert error(found[name], value) < bound, name


@every
def test_gradcheck(config: Config, one_thread: None) -> None:
    layer = layer_of(config, 2, 3)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in states_of(layer, 2)]

    def call(x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        hx = given[0] if len(states) == 1 else given[: len(states)]
        y, final = layer(x, hx)
        return (y, final) if isinstance(final, Tensor) else (y, *final)

    assert torch.autograd.gradcheck(call, (x, *states, *layer.parameters()))


@pytest.mark.parametrize("name", ["LayerNormLSTM", "SLSTM"])
def test_gradients_of_gradients(name: str, one_thread: None) -> None:
    layer = layer_of((name, {}), 2, 3)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x)[0], (x, *layer.parameters()))


@pytest.mark.parametrize("config", [NOISY_LSTM, ("LayerNormLSTM", {}), ("SLSTM", {}), VARIATIONAL])
def test_stacks_directions_and_lengths(config: Config) -> None:
    layer = layer_of(config, 4, 10, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([6, 4, 1])
    packed = pack_padded_sequence(x, lengths)
    torch.manual_seed(3)
    y, states = layer(packed)
    torch.manual_seed(3)
    padded, _ = layer(x, lengths=lengths)
    expected = reference.rnn(
        layer.declaration,
        packed.data,
        [],
        list(layer.parameters()),
        batch_sizes=packed.batch_sizes,
        seed=drawn(3) if layer.declaration.noise else None,
        num_layers=2,
        bidirectional=True,
    )
    for found, right in zip((y.data, *states), expected, strict=True):
        assert error(found, right) < 1e-12
    assert torch.equal(pack_padded_sequence(padded, lengths).data, y.data)


PLAIN = [
    (("LSTM", {}), rnnext.LSTM, {}),
    (("LSTM", {"recurrent_dropout": 0.25}), rnnext.LSTM, {}),
    (("GRU", {}), rnnext.GRU, {}),
    (("RNN", {}), rnnext.RNN, {}),
    (("IRNN", {}), rnnext.RNN, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("config", "plain", "options"), PLAIN)
def test_in_eval_mode_it_is_the_plain_layer_whose_weights_it_takes(
    config: Config, plain: Any, options: dict[str, Any]
) -> None:
    layer = layer_of(config, 4, 9, num_layers=2, bidirectional=True).eval()
    other = plain(4, 9, num_layers=2, bidirectional=True, dtype=torch.float64, **options)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-12, atol=1e-12)


def test_variants_that_can_be_made_an_lstm_are_one() -> None:
    plain = rnnext.LSTM(4, 9).double()
    weights = plain.state_dict()
    x = torch.randn(7, 3, 4, dtype=torch.float64)

    peephole = cells.PeepholeLSTM(4, 9).double()
    zeros = {f"peep_{gate}_l0": torch.zeros(9) for gate in "ifo"}
    peephole.load_state_dict({**weights, **zeros})
    torch.testing.assert_close(peephole(x), plain(x), rtol=1e-12, atol=1e-12)

    variational = cells.VariationalLSTM(4, 9, variational_dropout=0.25).double().eval()
    matrices = dict(zip("ifgo", plain.weight_hh_l0.chunk(4), strict=True))
    variational.load_state_dict(
        {
            "weight_ih_l0": weights["weight_ih_l0"],
            "bias_ih_l0": weights["bias_ih_l0"] + weights["bias_hh_l0"],
            **{f"weight_h{gate}_l0": matrix for gate, matrix in matrices.items()},
        }
    )
    torch.testing.assert_close(variational(x), plain(x), rtol=1e-12, atol=1e-12)

    coupled = cells.CoupledLSTM(4, 9).double()
    with torch.no_grad():  # i = sigmoid(-f) = 1 - sigmoid(f)
        for name, weight in plain.named_parameters():
            weight[:9] = -weight[9:18]
            getattr(coupled, name).copy_(weight[9:])
    torch.testing.assert_close(coupled(x), plain(x), rtol=1e-12, atol=1e-12)


def test_the_rates_of_zoneout_and_recurrent_dropout() -> None:
    zoneout = layer_of(NOISY_LSTM, 4, 40)
    x, states = torch.randn(1, 2000, 4).double(), states_of(zoneout, 2000)
    _, (h, c) = zoneout(x, tuple(states))
    assert abs((h == states[0]).double().mean() - 0.2) < 0.01
    assert abs((c == states[1]).double().mean() - 0.4) < 0.01
    # From c = 0 a unit stays 0 where it is kept or its candidate dropped: 0.4 + 0.6 * 0.25.
    _, (_, c) = zoneout(x)
    assert abs((c == 0).double().mean() - 0.55) < 0.01
    # In the mean over many draws, one step is that of eval mode.
    rows = x[:, :1].expand(1, 20000, 4)
    _, (_, c) = zoneout(rows)
    _, (_, mean) = zoneout.eval()(rows[:, :1])
    torch.testing.assert_close(c.mean(1), mean[:, 0], rtol=0, atol=0.02)


def test_a_variational_mask_is_one_for_all_steps() -> None:
    layer = cells.VariationalGRU(1, 3000, variational_dropout=0.25)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            # r = z = 1/2, n = tanh(mask h / 2): from h = 1 a dropped unit has h' = 1/2.
            value = torch.eye(3000) if name == "weight_hn_l0" else torch.zeros_like(weight)
            weight.copy_(value)
    y, _ = layer(torch.zeros(3, 1, 1), torch.ones(1, 1, 3000))
    dropped = y[0, 0] == 0.5
    assert abs(dropped.double().mean() - 0.25) < 0.03
    assert torch.equal(y[2, 0] == 0.125, dropped)


@pytest.mark.parametrize("config", [NOISY_LSTM, NOISY_GRU, VARIATIONAL])
def test_manual_seed_repeats_it_for_any_number_of_threads(config: Config, threads: None) -> None:
    layer = layer_of(config, 4, 48)
    x = torch.randn(20, 12, 4, dtype=torch.float64)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        for _ in range(2):
            torch.manual_seed(7)
            found.append(layer(x)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert error(found[2], found[0]) < 1e-12
    assert error(layer(x)[0], found[0]) > 1e-3


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LayerNormLSTM", "VariationalLSTM"])
def test_what_is_off_costs_nothing(name: str) -> None:
    layer = getattr(cells, name)(3, 4)
    assert not layer.declaration.noise
    assert "noise" not in layer.generated_code().lower().split("struct")[1]
    before = torch.get_rng_state()
    layer(torch.randn(2, 3, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)
    assert cells.LSTM(3, 4, zoneout_c=0.5).declaration.noise.keys() == {"keep_c"}


def test_forget_bias_is_the_initial_one() -> None:
    layer = cells.LSTM(50, 50, num_layers=2, bidirectional=True, forget_bias=3.0)
    for name, weight in layer.named_parameters():
        means = weight.view(4, 50, -1).mean((1, 2)).tolist()
        expected = [0, 3, 0, 0] if name.startswith("bias_ih") else [0, 0, 0, 0]
        assert means == pytest.approx(expected, abs=0.1), name
    gru = cells.GRU(50, 50, forget_bias=3.0)
    assert gru.bias_ih_l0.view(3, 50).mean(1).tolist() == pytest.approx([0, 3, 0], abs=0.1)
    for name in NORMED:
        normed = getattr(cells, name)(3, 4, forget_bias=3.0)
        shift = normed.shift_f_l0 if name.endswith("LSTM") else normed.shift_z_l0
        assert shift.tolist() == [3.0] * 4
        assert not any("bias" in key for key, _ in normed.named_parameters())
    with pytest.raises(ValueError, match=r"LSTM: got forget_bias=1.0 and bias=False"):
        cells.LSTM(3, 4, bias=False, forget_bias=1.0)


def test_irnn_begins_as_the_identity() -> None:
    layer = cells.IRNN(3, 4, num_layers=2, recurrent_scale=0.5)
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(weight, 0.5 * torch.eye(4))
        elif name.startswith("bias"):
            assert not weight.any()
        else:
            assert 0 < weight.abs().max() < 0.01
    blocks = cells.IRNN(3, 4, heads=2).weight_hh_l0
    assert torch.equal(blocks, torch.eye(2).repeat(2, 1))


def test_an_slstm_bears_gates_far_out_of_range() -> None:
    layer = cells.SLSTM(1, 2)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        layer.weight_ih_l0[:4] = 1.0  # i and f are x
    for forget in ("sigmoid", "exp"):
        layer.forget_gate_function = forget
        x = torch.tensor([-1e4, 500.0, -300.0, 1e4, -1e4]).view(5, 1, 1).requires_grad_()
        y, states = layer(x)
        y.sum().backward()
        for value in (y, *states, x.grad, *(w.grad for w in layer.parameters())):
            assert torch.isfinite(value).all()


def test_gate_functions_are_found_by_name() -> None:
    a = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for name, value in cells_reference.FUNCTIONS.items():
        torch.testing.assert_close(cells.FUNCTIONS[name](a), value(a))
    with pytest.raises(rnnext.CellError, match=r"there is no function 'tan', expected one of sigm"):
        cells.LSTM(3, 4, gate_function="tan")
    with pytest.raises(rnnext.CellError, match="got forget_gate_function='tan', expected 'sigmoid"):
        cells.SLSTM(3, 4, forget_gate_function="tan")


def dropped_connections(weight: Tensor, p: float, seed: Tensor, place: int) -> Tensor:
    """By the masks that noise.py says, which are not the kernel's."""
    return weight * noise_values(rnnext.Dropout(p), 8, seed, place, *weight.shape, weight)


LAYERS = [rnnext.LSTM(4, 9, num_layers=2), rnnext.GRU(4, 9), rnnext.RNN(4, 9), cells.LSTM(4, 9)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_drop_connect(layer: Any, threads: None) -> None:
    names = list(layer.state_dict())
    x = torch.randn(5, 3, 4)
    plain = layer(x)[0]
    assert cells.drop_connect(layer, 0.4) is layer
    assert list(layer.state_dict()) == names
    torch.manual_seed(7)
    y = layer(x)[0]
    y.square().sum().backward()
    share = (layer.weight_hh_l0.grad == 0).double().mean().item()
    assert abs(share - 0.4) < 0.15
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(7)
        torch.testing.assert_close(layer(x)[0], y)
    names = [name for name in names if name.startswith("weight_hh")]
    changed = {
        name: dropped_connections(layer.get_parameter(name), 0.4, drawn(7), place)
        for place, name in enumerate(names)
    }
    cells.drop_connect(layer, 0)
    torch.testing.assert_close(torch.func.functional_call(layer, changed, (x,))[0], y)
    torch.testing.assert_close(cells.drop_connect(layer, 0.4).eval()(x)[0], plain)
    cells.drop_connect(layer, 0).train()


def test_drop_connect_refuses_what_it_cannot_do() -> None:
    with pytest.raises(TypeError, match=r"takes a layer of rnnext, got LSTM; .* rnnext.swap"):
        cells.drop_connect(torch.nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="IndRNN has no recurrent matrix to drop from"):
        cells.drop_connect(cells.IndRNN(3, 4))
    with pytest.raises(ValueError, match=r"got p=1.5, expected a probability"):
        cells.drop_connect(rnnext.GRU(3, 4), 1.5)


@pytest.mark.parametrize("config", [("LSTM", {"zoneout_c": 0.4}), ("SLSTM", {})])
def test_torch_compile_traces_it_whole(config: Config) -> None:
    layer = layer_of(config, 3, 6)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(7)
    expected = layer(x)
    torch.manual_seed(7)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)


def test_every_cell_is_listed_with_its_equations() -> None:
    command = [sys.executable, "-m", "rnnext.cells"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    entries = text.strip().split("\n\n")
    assert [entry.partition(":")[0] for entry in entries] == list(cells.CELLS)
    for entry in entries:
        _, *equations, options = entry.splitlines()
        assert any(" = " in line for line in equations)
        assert options.startswith("    options: ")
    assert set(cells.CELLS) < set(cells.__all__)
    assert all(getattr(cells, name).__name__ == name for name in cells.CELLS)


@pytest.mark.parametrize("name", cells.CELLS)
def test_the_page_has_the_equations_of_the_docstring(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "cells.md").read_text(encoding="utf-8")
    _, equations, *_ = inspect.getdoc(getattr(cells, name)).split("\n\n")
    section = page.split(f"\n### {name}\n")[1].split("\n#")[0]
    assert equations in section
