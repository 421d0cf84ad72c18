"""What is done to a module's weights, as torch's own tests do: norms, pruning, old files, parts."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_modules import C, H, T, assert_equal, leaf, twins
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from twins import tensors

MODULES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
every_module = pytest.mark.parametrize("name", MODULES)


def recurrent_weight(name: str) -> str:
    return "weight_hh" if "Cell" in name else "weight_hh_l0"


def old_weight_norm(module: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, name)


def old_spectral_norm(module: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(module, name)


@every_module
@pytest.mark.parametrize(
    "normalise",
    [old_weight_norm, old_spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal],
)
def test_normalised_weights_equal_nns(
    name: str, normalise: Callable[[nn.Module, str], object]
) -> None:
    modules = twins(name, C, H)
    for module in modules:
        torch.manual_seed(0)
        normalise(module, recurrent_weight(name))
    x = leaf(T, C)
    for _ in range(2):  # the norms' own state moves at each call
        results = [module(x) for module in modules]
        assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])


@every_module
def test_weight_norm_comes_off_again(name: str) -> None:
    module, weight = twins(name, C, H)[1], recurrent_weight(name)
    x = torch.randn(T, C, dtype=torch.float64)
    before = tensors(module(x))
    old_weight_norm(module, weight)
    assert {f"{weight}_g", f"{weight}_v"} < dict(module.named_parameters()).keys()
    nn.utils.remove_weight_norm(module, weight)
    for a, b in zip(tensors(module(x)), before, strict=True):
        torch.testing.assert_close(a, b)


@every_module
def test_pruned_weights_equal_nns_and_their_gradients_are_masked(name: str) -> None:
    modules, weight = twins(name, C, H), recurrent_weight(name)
    for module in modules:
        prune.l1_unstructured(module, weight, amount=0.5)
    x = leaf(T, C)
    results = [module(x) for module in modules]
    assert_equal(results[1], results[0], {"x": x}, [*reversed(modules)])
    ours = modules[1]
    sum(t.sum() for t in tensors(ours(x))).backward()
    pruned = getattr(ours, f"{weight}_mask") == 0
    assert 0 < pruned.sum() < pruned.numel()
    assert (getattr(ours, f"{weight}_orig").grad[pruned] == 0).all()
    prune.remove(ours, weight)
    for a, b in zip(tensors(ours(x)), tensors(results[1]), strict=True):
        assert torch.equal(a, b)


@every_module
def test_a_weight_removed_and_put_back(name: str) -> None:
    module, weight = twins(name, C, H)[1], recurrent_weight(name)
    x = torch.randn(T, C, dtype=torch.float64)
    expected, original = tensors(module(x)), getattr(module, weight)
    delattr(module, weight)
    module.double()  # visits the weights that there are
    with pytest.raises(AttributeError, match=weight):
        module(x)
    for value in (original.detach().clone(), original):  # a tensor, no parameter; the parameter
        setattr(module, weight, value)
        assert all(map(torch.equal, tensors(module(x)), expected))
        delattr(module, weight)


@every_module
def test_weights_in_one_vector_and_in_shared_memory(name: str) -> None:
    theirs, ours = twins(name, C, H)
    x = torch.randn(T, C, dtype=torch.float64)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(1)
    vector = nn.utils.parameters_to_vector(theirs.parameters())
    nn.utils.vector_to_parameters(vector, ours.share_memory().parameters())
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_modules_of_old_files(name: str) -> None:
    """Those of torch 1.7 have no proj_size and no lists of the weights."""
    theirs, ours = twins(name, C, H, 2, bidirectional=True)
    expected = tensors(ours(torch.ones(T, C, dtype=torch.float64)))
    state = {
        key: value
        for key, value in ours.__dict__.items()
        if key not in ("proj_size", "_flat_weights", "_flat_weights_names", "_flat_weight_refs")
    }
    state["all_weights"] = [list(state["_parameters"].values())]
    del state["_all_weights"]
    old = type(ours).__new__(type(ours))
    old.__setstate__(state)
    assert old.proj_size == 0
    results = tensors(old(torch.ones(T, C, dtype=torch.float64)))
    assert all(map(torch.equal, results, expected))
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file, _use_new_zipfile_serialization=False)
    file.seek(0)
    old.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, old.parameters(), theirs.parameters()))


@every_module
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_that_do_not_fit(name: str, assign: bool) -> None:
    def load(module: Any, state: dict[str, Tensor]) -> str:
        with pytest.raises(RuntimeError) as info:
            module.load_state_dict(state, assign=assign)
        return str(info.value)

    theirs, ours = twins(name, C, H)
    weight, full = recurrent_weight(name), theirs.state_dict()
    missing = {key: value for key, value in full.items() if key != weight}
    for state in (missing, {**full, "more": full[weight]}, {**full, weight: full[weight][:-1]}):
        assert load(ours, state) == load(theirs, state)
    keys = ours.load_state_dict(missing, strict=False)
    assert keys.missing_keys == [weight]
