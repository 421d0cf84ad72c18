"""Backward through the modules as torch's own tests try it: again, in part, frozen, recomputed."""

from typing import Any

import pytest
import torch
from test_modules import CELLS, LAYERS, C, H, N, T, assert_equal, leaf, tensors, twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

every_module = pytest.mark.parametrize("name", LAYERS + CELLS)


def call(module: nn.Module, *args: Any) -> list[Tensor]:
    return tensors(module(*args))


@every_module
def test_a_graph_that_is_kept_gives_the_same_gradients_again(name: str) -> None:
    module = twins(name, C, H)[1]
    x = leaf(T, C)
    outputs, inputs = call(module, x), [x, *module.parameters()]
    toward = list(map(torch.randn_like, outputs))
    first = torch.autograd.grad(outputs, inputs, toward, retain_graph=True)
    for _ in range(3):
        again = torch.autograd.grad(outputs, inputs, toward, retain_graph=True)
        assert all(map(torch.equal, again, first))
    torch.autograd.grad(outputs, inputs, toward)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(outputs, inputs, toward)


@every_module
def test_each_output_alone_has_a_backward(name: str) -> None:
    modules = twins(name, C, H)
    x = leaf(T, C)
    for k in range(len(call(modules[1], x))):
        results = [call(module, x)[k] for module in modules]
        assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])


@every_module
def test_gradients_accumulate_over_calls(name: str) -> None:
    modules = twins(name, C, H)
    x = leaf(T, C)
    for module in modules:
        for k in range(6):
            sum(t.sum() for t in call(module, x * k)).backward()
    for a, b in zip(modules[1].parameters(), modules[0].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_loop_over_a_cell_equals_nns(name: str) -> None:
    modules = twins(name, C, H)
    x, results = leaf(T, N, C), []
    for module in modules:
        state = None
        for row in x:
            state = module(row, state)
        results.append(state)
    assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])


@every_module
@pytest.mark.parametrize("frozen", ["input", "weights", "biases", "all"])
def test_what_needs_no_gradient_gets_none(name: str, frozen: str) -> None:
    modules = twins(name, C, H)
    x = leaf(T, C).requires_grad_(frozen not in ("input", "all"))
    for module in modules:
        for key, p in module.named_parameters():
            p.requires_grad_(frozen == "input" or (frozen == "biases" and "weight" in key))
        outputs = call(module, x)
        assert all(t.requires_grad == (frozen != "all") for t in outputs)
        if frozen != "all":
            sum(t.sum() for t in outputs).backward()
    for a, b in zip(modules[1].parameters(), modules[0].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@every_module
def test_what_was_changed_in_place_is_noticed(name: str) -> None:
    module = twins(name, C, H)[1]
    x = torch.randn(T, C, dtype=torch.float64)
    weight = next(module.parameters())
    for k in range(3 if name in LAYERS else 2):  # a cell's backward does not read its output
        given = x.clone()
        outputs = call(module, given)
        with torch.no_grad():
            (given, weight, outputs[0])[k].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sum(t.sum() for t in outputs).backward()


@every_module
def test_results_can_be_changed_in_place(name: str) -> None:
    modules = twins(name, C, H)
    x = leaf(T, C)
    results = [[2 * t for t in call(module, x)] for module in modules]
    for outputs in results:
        for t in outputs:
            t.add_(1).mul_(3)
    assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_sequences_of_many_lengths_packed_and_one_by_one(name: str, order: str) -> None:
    lengths = [10, 10, 6, 2, 2, 1, 1]
    if order == "shuffled":
        lengths = [lengths[k] for k in (3, 0, 6, 2, 5, 1, 4)]
    module = twins(name, C, H, 2, bidirectional=True)[1]
    rows = [leaf(n, C) for n in lengths]
    y, states = module(pack_sequence(rows, enforce_sorted=order == "sorted"))
    packed = [torch.cat([*nn.utils.rnn.unpack_sequence(y)]), *tensors(states)]
    alone = [module(row) for row in rows]
    single = [torch.cat([y for y, _ in alone])]
    columns = zip(*(tensors(states) for _, states in alone), strict=True)
    single += [torch.stack(column, 1) for column in columns]
    leaves = {f"row {k}": row for k, row in enumerate(rows)}
    assert_equal(packed, single, leaves, [module, module])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_the_dropout(name: str, reentrant: bool) -> None:
    module = twins(name, C, H, 3, dropout=0.5)[1]
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        x = torch.ones(T, N, C, dtype=torch.float64, requires_grad=True)
        y = checkpoint(module, x, use_reentrant=reentrant)[0] if recompute else module(x)[0]
        y.square().sum().backward()
        grads.append([y, x.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    assert all(map(torch.equal, *grads))
