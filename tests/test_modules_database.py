"""torch's own module database, and the checks that torch's suite runs over it, on our classes.

What can't apply: parity and transfers between devices (there is one here), `inplace=` and memory
formats (no such argument, no 4-D input), TorchScript. Packed input, which the database has for RNN
and GRU, is added for LSTM; the cells take none.
"""

import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnext

pytest.importorskip("expecttest", reason="torch's module database imports it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing import make_tensor
    from torch.testing._internal.common_modules import (
        ModuleErrorEnum,
        make_packed_sequence,
        module_db,
    )
    from torch.testing._internal.common_utils import gradcheck, gradgradcheck
    from torch.testing._internal.optests.aot_autograd import aot_autograd_check

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls in [getattr(nn, name) for name in NAMES]
}

every_module = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Sample(NamedTuple):
    """A module of ours and nn's twin, how both were made, and the arguments of a call."""

    ours: Any
    theirs: Any
    options: tuple[tuple[Any, ...], dict[str, Any]]
    args: tuple[Any, ...]
    reference: Any

    @property
    def packed(self) -> bool:
        return isinstance(self.args[0], PackedSequence)

    def tensors(self) -> list[Tensor]:
        """Arguments and parameters."""
        return [*leaves(self.args), *self.ours.parameters()]

    def call(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The results at other values of arguments and parameters."""
        remaining = iter(values)
        args = rebuild(self.args, remaining)
        parameters = dict(zip(dict(self.ours.named_parameters()), remaining, strict=True))
        return tuple(leaves(torch.func.functional_call(self.ours, parameters, args)))


def leaves(value: Any) -> list[Tensor]:
    """The tensors in arguments or results, in order."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in leaves(part)]


def rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure, of other tensors."""
    if isinstance(value, PackedSequence):
        return value._replace(data=next(tensors))
    if isinstance(value, Tensor):
        return next(tensors)
    return tuple(rebuild(part, tensors) for part in value)


def samples(
    name: str,
    dtype: torch.dtype = torch.float64,
    training: bool = True,
    requires_grad: bool = False,
) -> list[Sample]:
    torch.manual_seed(0)
    options = {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad}
    more = {"with_packed_sequence": True} if name in ("GRU", "RNN") else {}
    inputs = INFOS[name].module_inputs_func(INFOS[name], training=training, **options, **more)
    found = []
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        calls = [(sample.forward_input.args, sample.reference_fn)]
        if name == "LSTM" and len(sample.forward_input.args) == 1:
            packed = make_packed_sequence(make_tensor((5, 3, 2), **options), [5, 3, 2])
            calls.append(((packed,), None))
        for given, reference in calls:
            pair = []
            for package in (rnnext, nn):
                torch.manual_seed(0)
                module = getattr(package, name)(*args, **kwargs, device="cpu", dtype=dtype)
                pair.append(module.train(training))
            found.append(Sample(*pair, (args, kwargs), given, reference))
    assert {s.packed for s in found} == ({False} if "Cell" in name else {False, True})
    return found


def assert_close(ours: Any, theirs: Any) -> None:
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(a, b)


@every_module
@every_dtype
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_backward(name: str, dtype: torch.dtype, training: bool) -> None:
    for sample in samples(name, dtype, training, requires_grad=True):
        results = leaves(sample.ours(*sample.args))
        expected = leaves(sample.theirs(*sample.args))
        assert_close(results, expected)
        toward = list(map(torch.randn_like, results))
        given = leaves(sample.args)
        grads = torch.autograd.grad(results, [*given, *sample.ours.parameters()], toward)
        assert_close(
            grads, torch.autograd.grad(expected, [*given, *sample.theirs.parameters()], toward)
        )
        if sample.reference is not None and not sample.packed:
            args = rebuild(sample.args, (t.detach() for t in given))  # it copies them
            assert_close(results, sample.reference(sample.ours, *args))


@every_module
@every_dtype
def test_errors(name: str, dtype: torch.dtype) -> None:
    errors = INFOS[name].module_error_inputs_func(
        INFOS[name], device="cpu", dtype=dtype, requires_grad=False, training=False
    )
    assert errors
    for error in errors:
        sample = error.module_error_input
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        kwargs = {"device": "cpu", "dtype": dtype, **kwargs}
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                getattr(rnnext, name)(*args, **kwargs)
        else:
            module = getattr(rnnext, name)(*args, **kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*sample.forward_input.args)


@every_module
def test_repr_pickle_save_and_load(name: str) -> None:
    for sample in samples(name):
        expected = leaves(sample.ours(*sample.args))
        assert repr(sample.ours) == repr(sample.theirs)
        weights, whole = io.BytesIO(), io.BytesIO()
        torch.save(sample.theirs.state_dict(), weights)
        torch.save(sample.ours, whole)
        args, kwargs = sample.options
        fresh = type(sample.ours)(*args, **kwargs, dtype=torch.float64)
        weights.seek(0)
        fresh.load_state_dict(torch.load(weights, weights_only=True))
        whole.seek(0)
        loaded = torch.load(whole, weights_only=False)
        for twin in (fresh, loaded, pickle.loads(pickle.dumps(sample.ours))):
            assert all(map(torch.equal, leaves(twin(*sample.args)), expected))


@every_module
def test_factory_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    class Parameter(nn.Parameter):
        def __new__(cls, data: Tensor, requires_grad: bool = True) -> Tensor:  # type: ignore[misc]
            made.append(data)
            return nn.Parameter(data, requires_grad)

    monkeypatch.setattr("torch.nn.modules.rnn.Parameter", Parameter)
    for sample in samples(name):
        kind, (args, kwargs) = type(sample.ours), sample.options
        with torch.device("meta"):
            made.clear()
            kind(*args, **kwargs)
            assert {(p.device.type, p.dtype) for p in made} == {("meta", torch.float32)}
        made.clear()
        kind(*args, **kwargs, device="meta", dtype=torch.float16)
        assert {(p.device.type, p.dtype) for p in made} == {("meta", torch.float16)}


@every_module
def test_non_contiguous_tensors(name: str) -> None:
    for sample in samples(name, requires_grad=True):
        plain = sample.tensors()
        expected = sample.call(*plain)
        toward = list(map(torch.randn_like, expected))
        grads = torch.autograd.grad(expected, plain, toward)
        spread = [t.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for t in plain]
        assert not any(t.is_contiguous() for t in spread if t.size(-1) > 1)
        count = len(leaves(sample.args))
        for values in (
            spread,
            [*spread[:count], *plain[count:]],
            [*plain[:count], *spread[count:]],
        ):
            results = sample.call(*values)
            assert_close(results, expected)
            strided = [g.repeat_interleave(2, -1)[..., ::2] for g in toward]
            assert_close(torch.autograd.grad(results, values, strided), grads)


@every_module
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["grad", "gradgrad"])
def test_gradients(name: str, check: Any) -> None:
    for sample in samples(name, requires_grad=True):
        # Of a batch of output gradients at once too, but for the second ones: see test_vmap.py.
        assert check(sample.call, sample.tensors(), check_batched_grad=check is gradcheck)


def derivatives(sample: Sample, values: list[Tensor], twice: bool) -> list[Tensor]:
    """Gradients of the values that require one; twice: of the sum of these gradients' squares."""
    wanted = [v for v in values if v.requires_grad]
    loss = sum(r.square().sum() for r in sample.call(*values))
    grads = torch.autograd.grad(loss, wanted, create_graph=twice)
    if twice:
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)
    return list(grads)


@every_module
def test_partial_derivatives(name: str) -> None:
    """Each alone: what the kernels may then leave out changes nothing."""
    for sample in samples(name, requires_grad=True):
        values = sample.tensors()
        for k, full in enumerate(derivatives(sample, values, False)):
            alone = [v if i == k else v.detach() for i, v in enumerate(values)]
            torch.testing.assert_close(derivatives(sample, alone, False), [full])
            # nn's loop of small operations, differentiated by torch alone.
            theirs = sample._replace(ours=sample.theirs)
            torch.testing.assert_close(
                derivatives(sample, alone, True), derivatives(theirs, alone, True)
            )


@every_module
def test_the_training_mode_is_read_only_where_it_matters(name: str) -> None:
    for sample in samples(name):
        del sample.ours.training
        sample.ours(*sample.args)


@pytest.fixture(params=[False, True], ids=["data", "swapped"])
def swapping(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both of torch's ways to convert a module's parameters."""
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)


@every_module
def test_to(name: str, swapping: bool) -> None:
    for sample in samples(name):
        modules = (sample.ours, sample.theirs)
        identities = list(map(id, sample.ours.parameters()))
        for module in modules:
            for p in module.parameters():
                p.grad = torch.ones_like(p)
            module.to(torch.float32)
        assert {p.grad.dtype for p in sample.ours.parameters()} == {torch.float32}
        assert list(map(id, sample.ours.parameters())) == identities
        args = rebuild(sample.args, (t.float() for t in leaves(sample.args)))
        assert_close(sample.ours(*args), sample.theirs(*args))


@every_module
def test_to_empty(name: str, swapping: bool) -> None:
    for sample in samples(name):
        args, kwargs = sample.options
        empty = type(sample.ours)(*args, **kwargs, device="meta", dtype=torch.float64)
        empty.to_empty(device="cpu")
        assert not any(p.is_meta for p in empty.parameters())
        with torch.no_grad():  # a graph would keep the parameters from being swapped
            for p, q in zip(empty.parameters(), sample.theirs.parameters(), strict=True):
                p.copy_(q)
            expected = leaves(sample.ours(*sample.args))
            assert all(map(torch.equal, leaves(empty(*sample.args)), expected))
        sample.ours.to("meta")
        assert all(p.is_meta for p in sample.ours.parameters())


@every_module
def test_ahead_of_time_autograd(name: str) -> None:
    for sample in samples(name, requires_grad=True):
        if sample.packed:  # batch_sizes would be a constant of the graph
            continue
        values = tuple(t.detach().requires_grad_() for t in sample.tensors())
        aot_autograd_check(sample.call, values, {}, dynamic=False)
