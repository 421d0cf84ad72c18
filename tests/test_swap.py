"""swap and unswap: what changes (the class), what survives (all else), what is left alone."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import rnnext
from rnnext import modules

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


class Model(nn.Module):
    """Layers in a row, in a list, in a dict, and one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
        self.rest = nn.ModuleList(
            [nn.GRU(8, 4, 2, dropout=0.5), nn.RNN(4, 4, nonlinearity="relu")]
        ).double()
        self.cells = nn.ModuleDict({"lstm": nn.LSTMCell(4, 4), "rnn": nn.RNNCell(4, 4)}).double()
        self.cells["again"] = self.cells["rnn"]

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        for layer in self.rest:
            x, _ = layer(x)
        h, _ = self.cells["lstm"](x[-1])
        return self.cells["again"](self.cells["rnn"](h))


def classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(m) for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_changes_class_and_nothing_else(name: str) -> None:
    module = getattr(nn, name)(3, 4).eval()
    before = dict(module.named_parameters())
    text = repr(module)
    assert rnnext.swap(module) is module
    assert type(module) is getattr(rnnext, name)
    assert repr(module) == text
    assert not module.training
    assert all(p is before[key] for key, p in module.named_parameters())
    assert rnnext.unswap(module) is module
    assert type(module) is getattr(nn, name)
    assert all(p is before[key] for key, p in module.named_parameters())


def test_a_swapped_model_computes_and_learns_the_same() -> None:
    torch.manual_seed(0)
    theirs = Model().eval()
    ours = rnnext.swap(copy.deepcopy(theirs))
    assert classes(ours) == [
        rnnext.LSTM,
        rnnext.GRU,
        rnnext.RNN,
        rnnext.LSTMCell,
        rnnext.RNNCell,
    ]
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for a, b in ((ours, theirs), (rnnext.unswap(ours), theirs)):
        a.zero_grad()
        b.zero_grad()
        y, expected = a(x), b(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        y.square().sum().backward()
        expected.square().sum().backward()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12)
    assert classes(ours) == classes(theirs)


def test_a_layer_with_projections_is_swapped_and_back() -> None:
    theirs = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    ours = rnnext.swap(copy.deepcopy(theirs))
    assert type(ours) is rnnext.LSTM
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y, (h_n, c_n) = ours(x)
    expected, (h, c) = theirs(x)
    for a, b in ((y, expected), (h_n, h), (c_n, c), (rnnext.unswap(ours)(x)[0], expected)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_optimizer_hooks_dtype_and_state_dict_survive() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[type[nn.Module]] = []
    model.first.register_forward_hook(lambda module, args, result: seen.append(type(module)))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    model(x).sum().backward()
    optimizer.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rnnext.swap(model)
    assert list(model.state_dict()) == list(state)
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    assert seen == [nn.LSTM, rnnext.LSTM]
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])]
    assert "first.weight_ih_l0" in moved
    assert model.first.weight_ih_l0.dtype == torch.float64
    rnnext.unswap(model).load_state_dict(state, strict=True)


def test_unswapped_layers_see_weights_that_were_exchanged_meanwhile() -> None:
    model = rnnext.swap(nn.Sequential(nn.LSTM(3, 4)))
    fresh = nn.LSTM(3, 4)
    model[0].load_state_dict(fresh.state_dict(), assign=True)
    model[0].weight_hh_l0 = nn.Parameter(fresh.weight_hh_l0.detach().clone())
    rnnext.unswap(model)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(model(x)[0], fresh(x)[0])
    assert all(a is b for a, b in zip(model[0]._flat_weights, model[0].parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_a_parametrized_module_is_swapped_and_back(name: str) -> None:
    module = getattr(nn, name)(3, 4, dtype=torch.float64)
    weight = "weight_hh" if "Cell" in name else "weight_hh_l0"
    parametrizations.weight_norm(module, weight)
    parametrizations.spectral_norm(module, weight.replace("hh", "ih")).eval()
    shared = copy.deepcopy(module)  # of the same class, as torch makes it
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters, text = dict(module.named_parameters()), repr(module)

    def check(model: Any, base: type[nn.Module]) -> None:
        assert isinstance(model, base)
        assert repr(model) == text
        assert all(p is parameters[key] for key, p in model.named_parameters())
        for other in (model, copy.deepcopy(model)):
            torch.testing.assert_close(leaf(other(x)), expected, rtol=1e-12, atol=1e-12)

    def leaf(result: Any) -> Tensor:
        return result if isinstance(result, Tensor) else result[0]

    with torch.no_grad():
        expected = leaf(module(x))
        check(rnnext.swap(module), getattr(rnnext, name))
        check(rnnext.swap(rnnext.unswap(rnnext.swap(module))), getattr(rnnext, name))
        check(rnnext.unswap(module), getattr(nn, name))
        assert not isinstance(shared, getattr(rnnext, name))
        rnnext.swap(module)
        for w in (weight, weight.replace("hh", "ih")):
            parametrize.remove_parametrizations(module, w)
        assert type(module) is getattr(rnnext, name)
        torch.testing.assert_close(leaf(module(x)), expected, rtol=1e-12, atol=1e-12)


def test_swapping_twice_and_swapping_ours_is_quiet() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), rnnext.GRU(4, 4), nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnnext.swap(rnnext.swap(model))
        assert classes(model) == [rnnext.LSTM, rnnext.GRU]
        rnnext.unswap(rnnext.unswap(model))
        assert classes(model) == [nn.LSTM, nn.GRU]


class Quiet(nn.LSTM):
    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)


class Loud(rnnext.GRU):
    pass


class LSTM(nn.Module):
    """A container that happens to bear a layer's name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 4)


def stubborn() -> nn.Module:
    replaced = nn.GRU(3, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    return nn.ModuleDict(
        {
            "subclass": Quiet(3, 4),
            "parametrized": parametrizations.weight_norm(Quiet(3, 4), "weight_hh_l0"),
            "replaced": replaced,
            "scripted": torch.jit.script(nn.LSTMCell(3, 4)),
            "quantized": torch.ao.nn.quantizable.LSTM(3, 4),
            "block": nn.Sequential(LSTM(), nn.Linear(3, 4)),
        }
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
def test_what_cannot_be_swapped_is_named_in_one_warning_and_left_alone() -> None:
    model = stubborn()
    before = [type(m) for m in model.modules()]
    with pytest.warns(UserWarning, match="swap left these modules alone") as caught:
        rnnext.swap(model)
    (warning,) = caught
    assert warning.filename == __file__
    lines = str(warning.message).splitlines()[1:]
    reasons = dict(line.strip().split(": ", 1) for line in lines)
    expected = {
        "subclass": "Quiet is a subclass of LSTM, whose methods would be lost",
        "parametrized": "Quiet is a subclass of LSTM, whose methods would be lost",
        "replaced": "its forward was replaced on the instance",
        "scripted": "a TorchScript LSTMCell",
        "quantized": "a quantized LSTM",
    }
    assert {path: reasons[path] for path in expected} == expected
    # Of a quantizable layer, its own cells are named too; nothing else is.
    assert all(path in expected or path.startswith("quantized.") for path in reasons)
    after = [type(m) for m in model.modules()]
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a is not b]
    assert changed == [(nn.LSTM, modules.LSTM)]
    assert type(model.get_submodule("block.0.inner")) is modules.LSTM


def test_the_model_itself_is_named_when_left_alone() -> None:
    with pytest.warns(UserWarning, match="the model itself: Quiet is a subclass of LSTM"):
        assert type(rnnext.swap(Quiet(3, 4))) is Quiet
    with pytest.warns(UserWarning, match="the model itself: Loud is a subclass of GRU"):
        assert type(rnnext.unswap(Loud(3, 4))) is Loud


def test_only_modules_are_swapped() -> None:
    with pytest.raises(TypeError, match=r"swap expects a torch.nn.Module, but got list"):
        rnnext.swap([nn.LSTM(3, 4)])  # type: ignore[type-var]
