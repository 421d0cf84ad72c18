"""The layers and cells against torch.nn's: values, gradients, errors, what modules go through."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import tensors

import rnnext

LAYERS = ["LSTM", "GRU", "RNN", "RNN relu"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell", "RNNCell relu"]
T, N, C, H = 5, 4, 3, 2
LENGTHS = [2, 5, 1, 4]


def twins(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours of the same name, arguments and seed."""
    name, *nonlinearity = name.split()
    if nonlinearity:
        options["nonlinearity"] = nonlinearity[0]
    pair = []
    for package in (nn, rnnext):
        torch.manual_seed(1)
        pair.append(getattr(package, name)(*args, **{"dtype": torch.float64, **options}))
    return pair[0], pair[1]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_equal(ours: Any, theirs: Any, leaves: dict[str, Tensor], modules: list[Any]) -> None:
    """Compare results and, for random gradients of them, the gradients of leaves and parameters."""
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    toward = [torch.randn_like(b) for _, b in pairs]
    grads = []
    for k, module in enumerate(modules):
        wanted = [*leaves.values(), *module.parameters()]
        outputs = [pair[k] for pair in pairs]
        grads.append(torch.autograd.grad(outputs, wanted, toward))
    names = ["result"] * len(pairs) + [*leaves, *dict(modules[0].named_parameters())]
    for name, (a, b) in zip(names, [*pairs, *zip(*grads, strict=True)], strict=True):
        assert a.shape == b.shape, name
        error = (a - b).norm() / b.norm().clamp_min(1e-12)
        assert error <= 1e-12, f"{name}: relative error {error:.1e}"


def call(module: Any, form: str, x: Tensor, hx: Any) -> Any:
    """Run x [T, N, C] (or batch first, or unbatched) in a form of input."""
    first = module.batch_first
    if form in ("batched", "unbatched"):
        return module(x, hx)
    if form == "lengths" and isinstance(module, rnnext.modules.Layer):
        return module(x, hx, lengths=LENGTHS)
    ends = sorted(LENGTHS, reverse=True) if form == "sorted" else LENGTHS
    packed = pack_padded_sequence(x, torch.tensor(ends), first, enforce_sorted=form == "sorted")
    y, states = module(packed, hx)
    if form == "lengths":
        return pad_packed_sequence(y, first, total_length=T)[0], states
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(y, field) is getattr(packed, field)
    return y, states


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["batched", "unbatched", "sorted", "unsorted", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layer_equals_nn(name: str, form: str, batch_first: bool) -> None:
    for stack, bias, given in itertools.product(((1, 1), (2, 2)), (True, False), (True, False)):
        layers, directions = stack
        options = {"num_layers": layers, "bidirectional": directions == 2}
        modules = twins(name, C, H, bias=bias, batch_first=batch_first, **options)
        if form == "unbatched":
            x, shape = leaf(T, C), (layers * directions, H)
        else:
            x = leaf(N, T, C) if batch_first else leaf(T, N, C)
            shape = (layers * directions, N, H)
        states = {"h_0": leaf(*shape), "c_0": leaf(*shape)} if given else {}
        if given and name != "LSTM":
            del states["c_0"]
        hx = None if not given else tuple(states.values()) if len(states) > 1 else states["h_0"]
        theirs, ours = (call(module, form, x, hx) for module in modules)
        assert type(ours[0]) is type(theirs[0])
        assert type(ours[1]) is type(theirs[1])
        assert_equal(ours, theirs, {"x": x, **states}, [*reversed(modules)])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(), (N,), (0,)], ids=["unbatched", "batched", "empty"])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_equals_nn(name: str, batch: tuple[int, ...], bias: bool) -> None:
    modules = twins(name, C, H, bias)
    x, h, c = leaf(*batch, C), leaf(*batch, H), leaf(*batch, H)
    for states in ({}, {"h": h, "c": c} if name == "LSTMCell" else {"h": h}):
        hx = None if not states else (h, c) if name == "LSTMCell" else h
        theirs, ours = (module(x, hx) for module in modules)
        assert type(ours) is type(theirs)
        assert_equal(ours, theirs, {"x": x, **states}, [*reversed(modules)])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_same_seed_gives_the_same_module(name: str) -> None:
    options = {} if "Cell" in name else {"num_layers": 2, "bidirectional": True, "dropout": 0.1}
    theirs, ours = twins(name, C, H, bias=False, **options)
    theirs_bias, ours_bias = twins(name, C, H, **options)
    for a, b in ((ours, theirs), (ours_bias, theirs_bias)):
        assert repr(a) == repr(b)
        assert list(a.state_dict()) == list(b.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for p in a.parameters():
            nn.init.zeros_(p)
        a.load_state_dict(b.state_dict(), strict=True)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        b.load_state_dict(a.state_dict(), strict=True)


@pytest.mark.parametrize("name", LAYERS)
def test_no_rows_give_empty_results_and_no_steps_raise(name: str) -> None:
    theirs, ours = twins(name, C, H, 2, bidirectional=True)
    empty = torch.zeros(T, 0, C, dtype=torch.float64)
    for a, b, c in zip(
        tensors(ours(empty)),
        tensors(theirs(empty)),
        tensors(ours(empty, lengths=[])),
        strict=True,
    ):
        assert a.shape == b.shape == c.shape
    for shape in ((0, N, C), (0, C), (0, 0, C)):
        for module in (ours, theirs):
            with pytest.raises(RuntimeError, match="xpected sequence length to be larger than 0"):
                module(torch.zeros(shape, dtype=torch.float64))


def assert_same_error(ours: Any, theirs: Any, *args: Any, **options: Any) -> None:
    caught = []
    for function in (theirs, ours):
        with pytest.raises(Exception) as info:  # noqa: PT011
            function(*args, **options)
        caught.append(info.value)
    assert type(caught[1]) is type(caught[0])
    assert str(caught[1]) == str(caught[0])


def states_like(name: str, *shape: int, **options: Any) -> Any:
    h = torch.zeros(shape, **{"dtype": torch.float64, **options})
    return (h, h) if name.startswith("LSTM") else h


@pytest.mark.parametrize("name", LAYERS)
def test_layer_errors_are_nns(name: str) -> None:
    theirs, ours = twins(name, C, H)
    x = torch.zeros(T, N, C, dtype=torch.float64)
    for bad in (x[None], x[0, 0], x[..., :2], x.float(), x.long(), x.to("meta"), [x]):
        assert_same_error(ours, theirs, bad)
    for input, shape in (
        (x, (1, 3, H)),
        (x, (2, N, H)),
        (x, (N, H)),
        (x[:, 0], (1, 1, H)),
        (x[:, 0], (3, H)),
    ):
        assert_same_error(ours, theirs, input, states_like(name, *shape))
    assert_same_error(ours, theirs, x, states_like(name, 1, N, H, device="meta"))
    # nn's message here is that of whichever kernel meets the tensors first.
    with pytest.raises(RuntimeError, match=r"not the same dtype, .*float64 and .*float32"):
        ours(x, states_like(name, 1, N, H, dtype=torch.float32))
    # nn.LSTM leaves packed input unchecked.
    packed = pack_padded_sequence(x, torch.full([N], T))
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size \(1, 4, 2\), got \[1, 3, 2\]"):
        ours(packed, states_like(name, 1, 3, H))
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        ours(packed._replace(data=x))
    if name == "LSTM":
        for bad in ((x,), (x, x, x)):
            with pytest.raises(
                RuntimeError, match=f"expects two hidden states, but got {len(bad)}"
            ):
                ours(x, bad)


@pytest.mark.parametrize("name", CELLS)
def test_cell_errors_are_nns(name: str) -> None:
    theirs, ours = twins(name, C, H)
    x = torch.zeros(N, C, dtype=torch.float64)
    for bad in (x[None], x[0, 0], x[:, :2], x[0, :2]):
        assert_same_error(ours, theirs, bad)
    for input, shape in ((x, (5, H)), (x, (N, 3)), (x, (H,)), (x[0], (1, H)), (x, (1, N, H))):
        assert_same_error(ours, theirs, input, states_like(name, *shape))
    with pytest.raises(RuntimeError, match=r"RNN input dtype .* Convert input: input.to"):
        ours(x.float())
    with pytest.raises(RuntimeError, match="not the same dtype"):
        ours(x, states_like(name, N, H, dtype=torch.float32))
    if name == "LSTMCell":
        h = x[:, :H]
        for bad in ((h, x), (h, h[:2])):
            assert_same_error(ours, theirs, x, bad)
        with pytest.raises(RuntimeError, match="lstm_cell expects two hidden states"):
            ours(x, (h,))
        with pytest.raises(TypeError, match="must be tuple of Tensors, not Tensor"):
            ours(x, h)
    if name == "RNNCell":
        theirs.nonlinearity = ours.nonlinearity = "sine"
        assert_same_error(ours, theirs, x)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_constructor_errors_and_warnings_are_nns(name: str) -> None:
    theirs, ours = getattr(nn, name), getattr(rnnext, name)
    for options in (
        {"dropout": 1.5, "num_layers": 2},
        {"dropout": True},
        {"proj_size": -1},
        {"proj_size": H},
        {"num_layers": 0},
        {"bias": 1},
        {"batch_first": None},
        {"nonlinearity": "sine"} if name == "RNN" else {"hidden_size": 0},
    ):
        assert_same_error(ours, theirs, **{"input_size": C, "hidden_size": H, **options})
    messages = []
    for kind in (theirs, ours):
        with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
            kind(C, H, dropout=0.5)
        messages.append(str(caught[0].message))
    assert messages[0] == messages[1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        ours(C, H, layers=2)


def round_trip_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def round_trip_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def round_trip_weights(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = type(module)(C, H, dtype=torch.float64)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, round_trip_pickle, round_trip_file, round_trip_weights]
)
def test_copies_compute_the_same_from_their_own_weights(
    name: str, duplicate: Callable[[nn.Module], Any]
) -> None:
    module = getattr(rnnext, name)(C, H, dtype=torch.float64)
    x = torch.randn(T, C, dtype=torch.float64)
    before = tensors(module(x))
    twin = duplicate(module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert type(twin) is type(module)
    assert all(map(torch.equal, tensors(twin(x)), before))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_casts_devices_and_modes(name: str) -> None:
    theirs, ours = twins(name, C, H)
    x = torch.randn(T, C)
    float32 = tensors(ours.float()(x))
    for a, b in zip(float32, tensors(theirs.float()(x)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert all(not t.requires_grad for t in tensors(ours(x)))
    with torch.inference_mode():
        frozen = tensors(ours(x))
    assert all(map(torch.equal, frozen, float32))
    assert all(t.is_inference() for t in frozen)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_the_meta_device_holds_shapes_until_weights_come(name: str) -> None:
    theirs, ours = twins(name, C, H, device="meta")
    x = torch.zeros(T, C, dtype=torch.float64)
    for a, b in zip(tensors(ours(x.to("meta"))), tensors(theirs(x.to("meta"))), strict=True):
        assert a.is_meta
        assert a.shape == b.shape
    real, same = twins(name, C, H)
    ours.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert all(map(torch.equal, tensors(ours(x)), tensors(same(x))))


class Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_weights_are_those_of_the_moment(name: str) -> None:
    theirs, ours = twins(name, C, H)
    weight = "weight_hh" if "Cell" in name else "weight_hh_l0"
    x, h = torch.randn(T, C, dtype=torch.float64), torch.randn(1, H, dtype=torch.float64)
    hx = (h[0].expand(T, H),) * 2 if "Cell" in name else (h, h)

    def value(module: Any) -> Tensor:
        return tensors(module(x, hx))[0]

    plain = value(ours)
    doubled = {weight: 2 * getattr(theirs, weight)}
    expected = torch.func.functional_call(theirs, doubled, (x, hx))[0]
    assert not torch.equal(plain, expected)
    torch.testing.assert_close(torch.func.functional_call(ours, doubled, (x, hx))[0], expected)
    assert torch.equal(value(ours), plain)

    parametrize.register_parametrization(ours, weight, Double())
    torch.testing.assert_close(value(ours), expected)
    torch.testing.assert_close(value(copy.deepcopy(ours.to(torch.float64))), expected)
    parametrize.remove_parametrizations(ours, weight, leave_parametrized=False)
    assert torch.equal(value(ours), plain)

    parametrizations.weight_norm(ours, weight)
    torch.testing.assert_close(value(ours), plain)
    parametrize.remove_parametrizations(ours, weight)

    prune.custom_from_mask(ours, weight, torch.zeros_like(doubled[weight]))
    zeroed = {weight: torch.zeros_like(doubled[weight])}
    torch.testing.assert_close(value(ours), torch.func.functional_call(theirs, zeroed, (x, hx))[0])
    prune.remove(ours, weight)

    ours.load_state_dict({**theirs.state_dict(), **doubled}, assign=True)
    torch.testing.assert_close(value(ours), expected)
    setattr(ours, weight, nn.Parameter(getattr(theirs, weight).detach().clone()))
    torch.testing.assert_close(value(ours), plain)


def test_shared_parameters_gather_both_gradients() -> None:
    pairs = [twins("GRU", C, C), twins("GRU", C, C)]
    x, grads = torch.randn(T, N, C, dtype=torch.float64), []
    for first, second in zip(*pairs, strict=True):
        second.weight_hh_l0 = first.weight_hh_l0
        second(first(x)[0])[0].sum().backward()
        grads.append(first.weight_hh_l0.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_strides_frozen_weights_and_gradients_of_final_states_alone(name: str) -> None:
    modules = twins(name, C, H, 2)
    x = torch.randn(C, T, 2 * N, dtype=torch.float64).permute(1, 2, 0)[:, ::2].requires_grad_()
    h = torch.randn(N, 2, H, dtype=torch.float64).transpose(0, 1).requires_grad_()
    grads = []
    for module in modules:
        module.requires_grad_(False)
        states = tensors(module(x, (h, h) if name == "LSTM" else h))[1:]
        grads.append(torch.autograd.grad(states[-1].sum(), [x, h]))
        assert all(p.grad is None for p in module.parameters())
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
