"""Backward through modules: in which modes, how often, from and to what, as with torch.nn's."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from twins import (
    CELLS,
    LAYERS,
    C,
    H,
    N,
    T,
    assert_same_gradients,
    close,
    every_layer,
    every_module,
    input_of,
    tensors,
    twins,
)
from written_cells import Zoneout

import rnnext

pytestmark = pytest.mark.usefixtures("one_thread")


def squares(outputs: list[Tensor]) -> Tensor:
    return sum((k + 1) * t.square().sum() for k, t in enumerate(outputs))  # type: ignore[return-value]


@every_module
def test_in_eval_mode(name: str) -> None:
    x = input_of(name)
    pair = twins(name)
    for module in pair:
        squares(tensors(module.eval()(x))).backward()
    assert_same_gradients(*pair)


@every_module
def test_twice_only_through_a_retained_graph(name: str) -> None:
    ours, _ = twins(name)
    x = input_of(name).requires_grad_()
    loss = squares(tensors(ours(x)))
    first = torch.autograd.grad(loss, [x, *ours.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *ours.parameters()])
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, x)


PARTS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "y": lambda results: results[0],
    "h_n": lambda results: results[1],
    "the last state": lambda results: results[-1],
    "the last step": lambda results: results[0][-1],
    "some units": lambda results: results[0][..., ::2],
    "one state of one layer": lambda results: results[-1][1, :2],
    "one element": lambda results: results[0][2, 1, 3],
}


@every_layer
@pytest.mark.parametrize("part", PARTS)
def test_from_a_part_of_the_results(name: str, part: str) -> None:
    pair = twins(name, C, H, 2, bidirectional=True)
    x = input_of(name)
    for module in pair:
        PARTS[part](tensors(module(x))).square().sum().backward()
    assert_same_gradients(*pair)


def test_from_one_state_of_a_cell() -> None:
    for part in (0, 1):
        pair = twins("LSTMCell")
        x = input_of("LSTMCell")
        for module in pair:
            module(x)[part].square().sum().backward()
        assert_same_gradients(*pair)


@every_module
def test_into_one_parameter_alone(name: str) -> None:
    x = input_of(name)
    for k in range(4):
        pair = twins(name)
        for module in pair:
            module.requires_grad_(False)
            list(module.parameters())[k].requires_grad_()
            squares(tensors(module(x))).backward()
        assert_same_gradients(*pair)


@every_module
def test_into_the_input_or_a_state_alone(name: str) -> None:
    ours, theirs = (module.requires_grad_(False) for module in twins(name))
    x = input_of(name)
    states = tensors(ours(x))[name in LAYERS :]
    leaves = [x, *(torch.randn_like(s) for s in states)]
    assert not squares(tensors(ours(x))).requires_grad
    for k in range(len(leaves)):
        given = [t.clone().requires_grad_(i == k) for i, t in enumerate(leaves)]
        hx = tuple(given[1:]) if len(states) == 2 else given[1]
        grads = [
            torch.autograd.grad(squares(tensors(module(given[0], hx))), given[k])[0]
            for module in (ours, theirs)
        ]
        close(*grads)


@every_module
def test_gradients_accumulate(name: str) -> None:
    pair = twins(name)
    batches = [input_of(name) for _ in range(3)]
    for module in pair:
        for x in batches:
            squares(tensors(module(x))).backward()
    assert_same_gradients(*pair)


@every_layer
def test_a_parameter_shared_between_layers_and_directions_of_one_module(name: str) -> None:
    pair = twins(name, H, H, 2, bidirectional=True)
    x = torch.randn(T, N, H, dtype=torch.float64)
    for module in pair:
        shared = module.weight_hh_l0
        module.weight_hh_l1 = module.weight_hh_l0_reverse = shared
        module.bias_ih_l1 = module.bias_hh_l0
        squares(tensors(module(x))).backward()
    assert len(list(pair[0].parameters())) == 16 - 3
    assert_same_gradients(*pair)


@every_layer
def test_a_parameter_shared_between_modules(name: str) -> None:
    pair = [nn.ModuleList(both) for both in zip(*(twins(name, H, H) for _ in "ab"), strict=True)]
    x = torch.randn(T, N, H, dtype=torch.float64)
    for first, second in pair:
        second.weight_hh_l0, second.bias_ih_l0 = first.weight_hh_l0, first.bias_ih_l0
        squares(tensors(second(first(x)[0]))).backward()
    assert_same_gradients(*pair)


@pytest.mark.parametrize("name", [*LAYERS, "zoneout"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed(name: str, use_reentrant: bool) -> None:
    options: dict[str, Any] = {"dropout": 0.4, "dtype": torch.float64}
    kind = Zoneout if name == "zoneout" else LAYERS[name][0]
    layer = kind(C, H, 3, **options)
    x, found = input_of(name).requires_grad_(), []
    for wrapped in (False, True):
        torch.manual_seed(1)
        if wrapped:
            y, _ = checkpoint(layer, x, use_reentrant=use_reentrant)
        else:
            y, _ = layer(x)
        (y * y).sum().backward()
        found.append([y, x.grad, *(p.grad for p in layer.parameters())])
        x.grad = None
        layer.zero_grad()
    assert all(map(torch.equal, *found))


@every_module
@pytest.mark.parametrize("changed", ["input", "a state", "a weight"])
def test_what_backward_reads_may_not_change_before(name: str, changed: str) -> None:
    ours, _ = twins(name)
    x = input_of(name)
    hx = tuple(t.detach() for t in tensors(ours(x))[name in LAYERS :])
    results = tensors(ours(x, hx if len(hx) == 2 else hx[0]))
    which = {"input": x, "a state": hx[0], "a weight": next(ours.parameters())}[changed]
    with torch.no_grad():
        which.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares(results).backward()


@every_module
def test_a_final_state_may_be_changed_in_place(name: str) -> None:
    ours, _ = twins(name)
    x = input_of(name)
    expected, changed = (tensors(ours(x))[-1] for _ in range(2))
    for loss in (2 * expected, changed.mul_(2)):
        loss.square().sum().backward()
    first, *_ = (p.grad for p in ours.parameters())
    ours.zero_grad()
    (2 * tensors(ours(x))[-1]).square().sum().backward()
    close(first, 2 * next(ours.parameters()).grad)


def test_a_cell_by_hand_through_time() -> None:
    for name in CELLS:
        pair = twins(name)
        x = torch.randn(T, N, C, dtype=torch.float64)
        for module in pair:
            hx = None
            for row in x:
                hx = module(row, hx)
            squares(tensors(hx)).backward()
        assert_same_gradients(*pair)


def test_truncated_backpropagation() -> None:
    for name, detached in itertools.product(LAYERS, (True, False)):
        pair = twins(name)
        x = torch.randn(3, T, N, C, dtype=torch.float64)
        for module in pair:
            hx, losses = None, []
            for part in x:
                if hx is not None and detached:
                    hx = tuple(h.detach() for h in hx) if isinstance(hx, tuple) else hx.detach()
                y, hx = module(part, hx)
                losses.append(y.square().sum())
            torch.stack(losses).sum().backward()
        assert_same_gradients(*pair)


def test_inference_mode_and_back() -> None:
    for kind in (rnnext.LSTM, Zoneout):
        layer = kind(C, H, dtype=torch.float64).eval()
        with torch.inference_mode():
            x = torch.randn(T, N, C, dtype=torch.float64)
            y, hx = layer(x)
        assert y.is_inference()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            layer(x, hx)
        fresh = torch.randn(T, N, C, dtype=torch.float64)
        layer(fresh)[0].sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
