"""Cells that sum over the sequences of a step, by the op: every output and gradient by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import error
from torch import Tensor

from rnnext import ops, reference
from rnnext.cell import Declaration, declare
from rnnext.codegen import build

T, N, C, H, L = 7, 5, 3, 19, 2


def centred(a: Tensor, h: Tensor, w: Tensor, batch_mean: Callable[[Tensor], Tensor]) -> Tensor:
    deviation = a - batch_mean(a)
    scale = (batch_mean(deviation * deviation) + 1e-3).sqrt()
    return (w * deviation / scale + 0.3 * a).tanh() + 0.5 * h


def mixed(
    z: Tensor,
    n_x: Tensor,
    n_h: Tensor,
    h: Tensor,
    c: Tensor,
    batch_mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The mean of a new state, and of what is made of it."""
    new = z.sigmoid() * c + (n_x - batch_mean(n_x * n_h)).tanh()
    return (new - batch_mean(new)).tanh(), new


CELLS = [
    declare("Centred", centred, gates=("a",), params={"w": 1.0}, batch_sums=("hidden_size",) * 2),
    declare(
        "Mixed",
        mixed,
        gates=("z",),
        apart_gates=("n",),
        states=("h", "c"),
        batch_sums=("hidden_size",) * 2,
    ),
]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


class Call:
    """A call of the op with all its inputs in float64, and gradients of its outputs."""

    def __init__(
        self, cell: Declaration, alive: list[int] | None = None, given: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.cell = cell
        shape = (T, N, C) if alive is None else (sum(alive), C)
        n = N if alive is None else alive[0]
        self.batch_sizes = None if alive is None else torch.tensor(alive)
        self.steps = T if alive is None else len(alive)
        sizes = {"hidden_size": H}
        self.x = torch.randn(shape, dtype=torch.float64)
        self.h0 = [torch.randn(L, n, H, dtype=torch.float64) for _ in cell.states]
        self.weights: list[Tensor] = []
        for layer in range(L):
            shapes = cell.weight_shapes(True, C if layer == 0 else H, sizes)
            for name, form in zip(cell.weight_names(True), shapes, strict=True):
                if name == "batch_sums" and given:
                    form = (self.steps, form[1])
                self.weights.append(torch.randn(form, dtype=torch.float64).abs() + 0.1)
                if name != "batch_sums":
                    self.weights[-1].uniform_(-0.5, 0.5)

    def names(self) -> list[str]:
        names = ["x", *(f"{state}0" for state in self.cell.states)]
        return names + [f"{n}_l{k}" for k in range(L) for n in self.cell.weight_names(True)]

    def run(
        self, run: Any, dtype: torch.dtype, device: str = "cpu", **options: Any
    ) -> dict[str, Tensor]:
        name = build.kernel(self.cell)
        leaves = [t.to(device, dtype, copy=True) for t in (self.x, *self.h0, *self.weights)]
        for leaf, leaf_name in zip(leaves, self.names(), strict=True):
            leaf.requires_grad_("batch_sums" not in leaf_name)
        states = len(self.h0)
        x, h0, weights = leaves[0], leaves[1 : 1 + states], leaves[1 + states :]
        outputs = run(name, x, h0, weights, batch_sizes=self.batch_sizes, num_layers=L, **options)
        torch.manual_seed(1)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [random_like(o) for o in outputs[:-1]]
        found = torch.autograd.grad(outputs[:-1], wanted, grads, create_graph=True)
        names = [n for n in self.names() if "batch_sums" not in n]
        assert not outputs[-1].requires_grad
        result = dict(zip(["y", *self.cell.states, "sums"], outputs, strict=True))
        result |= {f"d{n}": g for n, g in zip(names, found, strict=True)}
        torch.manual_seed(2)
        flowing = [g for g in found if g.requires_grad]
        again = [random_like(g) for g in flowing]
        second = torch.autograd.grad(flowing, wanted, again, allow_unused=True)
        result |= {f"dd{n}": g for n, g in zip(names, second, strict=True) if g is not None}
        return {name: value.detach().cpu() for name, value in result.items()}


def random_like(tensor: Tensor) -> Tensor:
    return torch.randn(tensor.shape, dtype=torch.float64).to(tensor)


def check(call: Call, dtype: torch.dtype, bound: float, device: str = "cpu") -> dict[str, Tensor]:
    expected = call.run(reference.rnn, torch.float64)
    found = call.run(ops.rnn, dtype, device)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert error(found[name], value) < bound, name
    return found


CASES = [None, [5, 5, 4, 2, 1], [3], [1, 1, 1]]


@every_cell
@pytest.mark.parametrize("alive", CASES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
def test_equals_the_reference(cell: Declaration, alive: list[int] | None, given: bool) -> None:
    check(Call(cell, alive, given), torch.float64, 1e-10)


@every_cell
def test_in_float32(cell: Declaration) -> None:
    check(Call(cell), torch.float32, 1e-4)


@every_cell
def test_threads_change_no_bit(cell: Declaration, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(Call(cell).run(ops.rnn, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@every_cell
@pytest.mark.parametrize("alive", [None, [5, 5, 4, 2, 1]], ids=str)
def test_checkpoints_change_no_bit(cell: Declaration, alive: list[int] | None) -> None:
    call = Call(cell, alive)
    plain = call.run(ops.rnn, torch.float32)
    kept = call.run(ops.rnn, torch.float32, checkpoint_every=2)
    for name, value in plain.items():
        assert torch.equal(value, kept[name]), name


@every_cell
def test_sums_that_were_made_give_the_same_outputs(cell: Declaration) -> None:
    call = Call(cell)
    made = call.run(ops.rnn, torch.float64)
    per_layer = len(call.weights) // L
    for layer in range(L):
        call.weights[(layer + 1) * per_layer - 1] = made["sums"][layer]
    given = call.run(ops.rnn, torch.float64)
    for name in ("y", *cell.states, "sums"):
        assert torch.equal(made[name], given[name]), name
    assert not torch.equal(made["dx"], given["dx"])  # through which nothing flows now


@every_cell
def test_vmap_keeps_samples_apart(cell: Declaration) -> None:
    call = Call(cell)
    name = build.kernel(cell)
    xs = torch.stack([call.x, 2 * call.x, call.x.flip(0)])

    def run(x: Tensor) -> Tensor:
        return ops.rnn(name, x, call.h0, call.weights, num_layers=L)[0]

    for got, x in zip(torch.vmap(run)(xs), xs, strict=True):
        torch.testing.assert_close(got, run(x), rtol=0, atol=0)

    def loss(x: Tensor) -> Tensor:
        return run(x).square().sum()

    for got, x in zip(torch.vmap(torch.func.grad(loss))(xs), xs, strict=True):
        torch.testing.assert_close(got, torch.func.grad(loss)(x), rtol=1e-12, atol=1e-12)


@every_cell
def test_forward_mode(cell: Declaration) -> None:
    call = Call(cell)
    name = build.kernel(cell)
    tangent = torch.randn_like(call.x)

    def jvp(run: Any) -> Tensor:
        def y(x: Tensor) -> Tensor:
            return run(name, x, call.h0, call.weights, num_layers=L)[0]

        return torch.func.jvp(y, (call.x,), (tangent,))[1]

    torch.testing.assert_close(jvp(ops.rnn), jvp(reference.rnn), rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.filterwarnings("ignore:.*single-threaded")
def test_opcheck(cell: Declaration) -> None:
    call = Call(cell, [3, 2])
    name = build.kernel(cell)
    leaves = [t.requires_grad_(t.size(0) > 0) for t in call.weights]
    arguments = (name, call.x, call.h0, leaves, call.batch_sizes, None, L, False, 0.0, [])
    torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)


def test_what_it_refuses() -> None:
    call = Call(CELLS[0], [5, 3])
    name = build.kernel(CELLS[0])
    per_layer = len(call.weights) // L

    def run(**options: Any) -> None:
        options = {"batch_sizes": call.batch_sizes, "num_layers": L, **options}
        ops.rnn(name, call.x, call.h0, call.weights, **options)

    with pytest.raises(RuntimeError, match="reverse the sequences instead"):
        run(num_layers=1, bidirectional=True)
    call.weights[per_layer - 1] = torch.ones(2, 2 * H, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="for all layers or for none"):
        run()
    call.weights[-1] = torch.ones(3, 2 * H, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"sums over sequences has shape \[3, 38\]"):
        run()
    call.weights[-1] = torch.ones(2, 2 * H, dtype=torch.float64).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient of sums over sequences"):
        ops.rnn(name, call.x, call.h0, call.weights, batch_sizes=call.batch_sizes, num_layers=L)[
            0
        ].sum().backward()


@every_cell
def test_the_plan_says_how_units_are_shared_out(cell: Declaration) -> None:
    name = build.kernel(cell)
    plan = torch.ops.rnnext.plan(name, 35, 20, 200, [200], dtype=torch.float32, threads=2)
    assert "2 threads by units (mixed): 0-95, 96-199" in plan
    small = torch.ops.rnnext.plan(name, 35, 20, 8, [8], dtype=torch.float32, threads=2)
    assert "1 thread (small)" in small
