"""Dropout between layers: where it acts, and where its randomness comes from."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnext
from rnnext import reference

LAYERS = ["LSTM", "GRU", "RNN"]
T, N, C, H = 4, 3, 5, 6


def layer(name: str, num_layers: int = 3, dropout: float = 0.4, **options: Any) -> Any:
    options = {"bidirectional": True, "dtype": torch.float64, **options}
    return getattr(rnnext, name)(C, H, num_layers, dropout=dropout, **options)


def grads(y: Tensor, x: Tensor, rnn: Any) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [x, *rnn.parameters()]))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("packed", [False, True])
def test_mask_is_the_references_at_a_seed_from_torchs_generator(name: str, packed: bool) -> None:
    rnn = layer(name)
    x = torch.randn(T, N, C, dtype=torch.float64, requires_grad=True)
    rows, sizes, given = x, None, x
    if packed:
        given = pack_padded_sequence(x, [4, 2, 1])
        rows, sizes = given.data, given.batch_sizes
    torch.manual_seed(5)
    y, _ = rnn(given)
    y = y.data if packed else y
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (1,))
    expected, *_ = reference.rnn(
        rnn.mode,
        rows,
        [],
        list(rnn.parameters()),
        batch_sizes=sizes,
        seed=seed,
        num_layers=3,
        bidirectional=True,
        dropout=0.4,
    )
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    retained = [
        torch.autograd.grad(out.square().sum(), [x, *rnn.parameters()], retain_graph=True)
        for out in (y, expected)
    ]
    for a, b in zip(*retained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_manual_seed_repeats_a_run_and_a_new_call_does_not(name: str) -> None:
    rnn = layer(name)
    x = torch.randn(T, N, C, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    first, second = rnn(x)[0], rnn(x)[0]
    torch.manual_seed(0)
    again = rnn(x)[0]
    assert torch.equal(again, first)
    assert all(map(torch.equal, grads(again, x, rnn), grads(first, x, rnn)))
    assert not torch.equal(second, first)


@pytest.mark.parametrize("why", ["eval", "no dropout", "one layer"])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_nothing_is_drawn_where_nothing_is_dropped(why: str) -> None:
    rnn = layer(
        "LSTM",
        num_layers=1 if why == "one layer" else 2,
        dropout=0.0 if why == "no dropout" else 0.4,
    )
    rnn.train(why != "eval")
    x = torch.randn(T, N, C, dtype=torch.float64)
    before = torch.get_rng_state()
    y = rnn(x)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rnn(x)[0], y)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_of_one_leaves_the_later_layers_their_biases(name: str) -> None:
    rnn = layer(name, dropout=1.0, num_layers=2)
    y = [rnn(torch.randn(T, N, C, dtype=torch.float64))[0] for _ in range(2)]
    assert torch.equal(y[0], y[1])
    torch.testing.assert_close(y[0], y[0][:, :1].expand_as(y[0]), rtol=1e-12, atol=1e-12)


def test_the_mean_over_masks_is_the_run_without() -> None:
    """A second layer that is linear in its input: relu, on positive sums, no recurrence."""
    torch.manual_seed(0)
    rnn = layer("RNN", num_layers=2, dropout=0.3, nonlinearity="relu", bidirectional=False)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.abs_()
        rnn.weight_hh_l1.zero_()
    x = torch.rand(1, 20_000, C, dtype=torch.float64)
    rnn.train()
    dropped = rnn(x)[0]
    rnn.eval()
    kept = rnn(x)[0]
    difference = (dropped - kept).mean((0, 1))
    error = (dropped - kept).std((0, 1)) / x.size(1) ** 0.5
    assert (error > 0).all()
    assert (difference.abs() < 5 * error).all()


@pytest.mark.parametrize("train", [True, False])
def test_a_probability_that_is_changed_counts_from_the_next_call(train: bool) -> None:
    """Sums of ones show how many of the first layer's units were kept."""
    units = 1000
    rnn = rnnext.RNN(10, units, 2, bias=False, dropout=0.5, nonlinearity="relu").train(train)
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            weight.fill_(1 if "ih" in name else 0)
    x = torch.ones(1, 1, 10)
    for p in (0.5, 0.0, 0.276, 1.0, 0.731):
        rnn.dropout = p
        y, h_n = rnn(x)
        assert y.min() == y.max()
        assert (h_n[0] == 10).all()
        assert torch.equal(h_n[1:], y)
        kept = y.max().item() * ((1 - p) if train else 1) / 10
        if p in (0, 1) or not train:
            assert kept == (0 if train and p == 1 else units)
        else:
            assert abs(kept - round(kept)) < 1e-2
            assert abs(kept - (1 - p) * units) < 5 * (p * (1 - p) * units) ** 0.5
