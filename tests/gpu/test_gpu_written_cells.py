"""Cells written in Python on the device: compiled for it, and every output and gradient right."""

import itertools

import pytest
import torch
from cases import Case, error
from gpu_cases import SIZES, WRITTEN
from noise_cell import Noises
from on_device import DEVICE, LOW, MATHS, WIDE, check, data_for, paths
from test_ops_batch_sums import CASES as BATCHES
from test_ops_batch_sums import CELLS as MIXING
from test_ops_batch_sums import Call
from test_ops_batch_sums import check as check_mixing
from written_cells import ZOO

from rnnext import cells, ops, reference
from rnnext.cell import Declaration

SMALL = (
    Case(T=5, N=3, C=5, H=7, L=2, D=2, dropout=0.3),
    Case(T=7, N=4, C=3, H=65, D=2, lengths=(7, 5, 5, 1), bias=False),
    Case(T=9, N=70, C=3, H=17, h0=False),
    *SIZES[1:4],
)
LARGE = (SIZES[6], SIZES[8], Case(T=5, N=3, C=7, H=650))
HEADS = (
    Case(T=4, N=3, C=3, H=12, L=2, D=2, heads=3),
    Case(T=20, N=20, C=65, H=256, heads=4),
    Case(T=5, N=2, C=5, H=400, heads=5, lengths=(5, 2)),
)

CALLS = [
    *itertools.product(SMALL, WRITTEN, MATHS),
    *itertools.product(LARGE, WRITTEN, ("float32", *LOW)),
]


@paths
@pytest.mark.parametrize(("case", "cell", "math"), CALLS, ids=str)
def test_equals_the_reference(
    case: Case, cell: str, math: str, path: str, poisoned_blocks: None
) -> None:
    check(cell, case, math)


@paths
@pytest.mark.parametrize("case", HEADS, ids=str)
@pytest.mark.parametrize("cell", ["SLSTM", "LightGRU"])
def test_heads(cell: str, case: Case, path: str) -> None:
    for math in WIDE:
        check(cell, case, math)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_heads_of_built_in_cells(cell: str) -> None:
    for case in HEADS:
        check(cell, case, "float64")


@paths
@pytest.mark.parametrize("case", SMALL[:2], ids=str)
def test_without_a_seed_noise_is_its_expectation(case: Case, path: str) -> None:
    check("Zoneout", case, "float64", seeded=False)
    y = []
    for seeded in (True, False):
        data = data_for("Zoneout", case, seeded)
        inputs = [t.detach() for t in data.inputs(torch.float64)]
        y.append(ops.rnn(data.cell, *data.split(inputs), **data.options)[0])
    assert error(*y) > 1e-3


def test_noise_is_that_of_the_cpu() -> None:
    """Every kind, for each step and for all steps, in states that hold nothing else."""
    layer = Noises(3, 129, 2, bidirectional=True)
    x, results = torch.zeros(9, 5, 3), []
    for device in ("cpu", DEVICE):
        torch.manual_seed(11)
        y, states = layer.to(device)(x.to(device))
        results.append([t.detach().cpu() for t in (y, *states)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert len({float(t.mean()) for t in results[0]}) == len(results[0])


def test_a_layer_of_the_zoo_trains_where_it_is_moved() -> None:
    torch.manual_seed(0)
    layer = ZOO["LightGRU"](5, 33, 2, bidirectional=True)
    x = torch.randn(7, 3, 5)
    cell = layer.declaration
    for device in ("cpu", DEVICE):
        weights = [w.detach().to(device).requires_grad_() for w in layer.parameters()]
        expected = reference.rnn(cell, x.to(device), [], weights, num_layers=2, bidirectional=True)
        y, _ = layer.to(device)(x.to(device))
        assert error(y, expected[0]) < 1e-5
        (gradient,) = torch.autograd.grad(y.square().sum(), layer.weight_hh_l1)
        (wanted,) = torch.autograd.grad(expected[0].square().sum(), weights[9])
        assert error(gradient, wanted) < 1e-5


@pytest.mark.parametrize("cell", MIXING, ids=lambda cell: cell.name)
@pytest.mark.parametrize("alive", BATCHES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
def test_sums_over_sequences(cell: Declaration, alive: list[int] | None, given: bool) -> None:
    check_mixing(Call(cell, alive, given), torch.float64, 1e-10, DEVICE)
    check_mixing(Call(cell, alive, given), torch.float32, 1e-4, DEVICE)


def test_batch_norm_lstm_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    layer = cells.BatchNormLSTM(5, 33, 2, bidirectional=True, max_length=4)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    x, lengths, results = torch.randn(7, 6, 5), [7, 3, 5, 1, 2, 7], []
    for device in ("cpu", DEVICE):
        layer.load_state_dict(start)
        layer.to(device)
        y, states = layer.train()(x.to(device), lengths=lengths)
        gradient = torch.autograd.grad(y.square().sum(), layer.weight_hh_l0)
        evaluated = layer.eval()(x.to(device), lengths=lengths)[0]
        found = (y, *states, *gradient, evaluated, *layer.buffers())
        results.append([t.detach().cpu() for t in found])
    for a, b in zip(*results, strict=True):
        assert error(b, a) < 1e-5
