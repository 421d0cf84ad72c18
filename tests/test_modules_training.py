"""What training loops do to modules: hooks, optimizers, clipping, averages, copies, moves."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parameters_to_vector
from torch.nn.utils import vector_to_parameters as from_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from twins import (
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
from written_cells import Peephole

pytestmark = pytest.mark.usefixtures("one_thread")


def loss_of(module: Any, x: Tensor) -> Tensor:
    return sum(t.square().mean() for t in tensors(module(x)))  # type: ignore[return-value]


@every_module
def test_tensor_hooks_on_parameters(name: str) -> None:
    pair, x = twins(name), input_of(name)
    for module in pair:
        for k, p in enumerate(module.parameters()):
            p.register_hook(lambda grad, k=k: (k + 2) * grad)
        loss_of(module, x).backward()
    assert_same_gradients(*pair)


@every_module
def test_hooks_after_a_gradient_is_accumulated(name: str) -> None:
    """The optimizer's step in the backward pass."""
    pair, x = twins(name), input_of(name)

    def step(p: Tensor) -> None:
        with torch.no_grad():
            p -= 0.5 * p.grad
        p.grad = None

    for module in pair:
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            loss_of(module, x).backward()
        assert all(p.grad is None for p in module.parameters())
    for a, b in zip(*(m.parameters() for m in pair), strict=True):
        close(a, b)


@every_module
def test_module_hooks(name: str) -> None:
    """Forward hooks see and change the same arguments and results, backward hooks gradients."""
    pair, x = twins(name), input_of(name).requires_grad_()
    seen: list[list[tuple[str, list[Tensor]]]] = [[], []]
    for module, log in zip(pair, seen, strict=True):

        def forward_pre(_: Any, args: tuple[Tensor, ...], log: Any = log) -> tuple[Tensor, ...]:
            log.append(("forward pre", tensors(args)))
            return (2 * args[0], *args[1:])

        def forward(_: Any, args: Any, result: Any, log: Any = log) -> Any:
            log.append(("forward", [*tensors(args), *tensors(result)]))
            return 3 * result if isinstance(result, Tensor) else (3 * result[0], *result[1:])

        def backward_pre(_: Any, grads: Any, log: Any = log) -> None:
            log.append(("backward pre", [g for g in grads if g is not None]))

        def backward(_: Any, grads: Any, grads_out: Any, log: Any = log) -> Any:
            log.append(("backward", [g for g in (*grads, *grads_out) if g is not None]))
            return tuple(None if g is None else -g for g in grads)

        module.register_forward_pre_hook(forward_pre)
        module.register_forward_hook(forward)
        module.register_full_backward_pre_hook(backward_pre)
        module.register_full_backward_hook(backward)
        tensors(module(x))[0].square().sum().backward()
        log.append(("input", [x.grad]))
        x.grad = None
    assert [event for event, _ in seen[0]] == [event for event, _ in seen[1]]
    for (event, a), (_, b) in zip(*seen, strict=True):
        assert len(a) == len(b), event
        for left, right in zip(a, b, strict=True):
            close(left, right)
    assert_same_gradients(*pair)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "SGD, foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=3),
}


@every_layer
@pytest.mark.parametrize("which", OPTIMIZERS)
def test_optimizers(name: str, which: str) -> None:
    pair, x = twins(name, C, H, 2), input_of(name)
    for module in pair:
        optimizer = OPTIMIZERS[which](module.parameters())

        def closure(module: Any = module, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (module(x)[0] - x.mean(-1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(5)]
        assert losses[-1] < losses[0]
    for a, b in zip(*(m.parameters() for m in pair), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@every_module
def test_clipping_and_vectors_of_parameters(name: str) -> None:
    pair, x = twins(name), input_of(name)
    norms = []
    for module in pair:
        (100 * loss_of(module, x)).backward()
        norms.append(clip_grad_norm_(module.parameters(), 0.1))
        clip_grad_value_(module.parameters(), 0.01)
    close(*norms)
    assert_same_gradients(*pair)
    ours, theirs = pair
    vector = parameters_to_vector(ours.parameters())
    assert torch.equal(vector, parameters_to_vector(theirs.parameters()))
    for module in pair:
        from_vector(0.5 * vector, module.parameters())
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        close(a, b)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)], ids=["mean", "decaying"])
@every_layer
def test_averaged_models(name: str, average: Any) -> None:
    x, found = input_of(name), []
    for module in twins(name):
        averaged = AveragedModel(module, multi_avg_fn=average)
        optimizer = torch.optim.SGD(module.parameters(), 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(module, x).backward()
            optimizer.step()
            averaged.update_parameters(module)
        found.append(tensors(averaged(x)))
        assert not torch.equal(found[-1][0], module(x)[0])
    for a, b in zip(*found, strict=True):
        close(a, b)


@every_module
def test_functional_call_and_stacked_states(name: str) -> None:
    models = [twins(name)[0] for _ in range(3)]
    for k, model in enumerate(models):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(k + 1)
    stacked, buffers = torch.func.stack_module_state(models)
    assert not buffers
    x, plain = input_of(name), twins(name)[0]
    for k, model in enumerate(models):
        values = {key: value[k].detach().requires_grad_() for key, value in stacked.items()}
        result = torch.func.functional_call(plain, values, (x,))
        for a, b in zip(tensors(result), tensors(model(x)), strict=True):
            assert torch.equal(a, b)
        sum(t.sum() for t in tensors(result)).backward()
        assert all(value.grad is not None for value in values.values())
    assert all(p.grad is None for p in plain.parameters())


@every_module
def test_casts_moves_and_shared_memory(name: str) -> None:
    pair, x = twins(name), input_of(name)
    for module in pair:
        assert module.to(torch.float32).to("cpu") is module
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        module.double().share_memory()
        assert all(p.is_shared() for p in module.parameters())
        module.to(memory_format=torch.contiguous_format)
        loss_of(module, x).backward()
        module.apply(lambda m: m.requires_grad_(True))
    assert_same_gradients(*pair)
    ours, theirs = (tensors(module.zero_grad() or module(x)) for module in pair)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def files(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, files, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_go_on_training_by_themselves(duplicate: Callable[[Any], Any]) -> None:
    kinds = [pair[0] for pair in LAYERS.values()] + [Peephole]
    model = nn.ModuleList(kind(C, H, dtype=torch.float64) for kind in kinds)
    x = torch.randn(T, N, C, dtype=torch.float64)

    def step(layers: Any) -> None:
        sum(loss_of(layer, x) for layer in layers).backward()
        torch.optim.SGD(layers.parameters(), 0.1).step()

    step(model)
    model.zero_grad()
    twin, before = duplicate(model), copy.deepcopy(model.state_dict())
    step(twin)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    step(model)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@every_layer
def test_state_dicts_from_a_file_with_the_optimizers(name: str) -> None:
    """An interrupted run goes on as one that was not."""
    x, found = input_of(name), []
    for interrupted in (False, True):
        module = twins(name, C, H, 2)[0]
        optimizer = torch.optim.Adam(module.parameters())
        for step in range(4):
            if interrupted and step == 2:
                file = io.BytesIO()
                torch.save([module.state_dict(), optimizer.state_dict()], file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                module = LAYERS[name][0](C, H, 2, dtype=torch.float64)
                optimizer = torch.optim.Adam(module.parameters())
                for target, state in zip((module, optimizer), saved, strict=True):
                    target.load_state_dict(state)
            optimizer.zero_grad()
            loss_of(module, x).backward()
            optimizer.step()
        found.append(list(module.parameters()))
    assert all(map(torch.equal, *found))
