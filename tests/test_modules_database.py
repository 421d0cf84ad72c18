"""torch's own module database (what its test suite runs for nn.LSTM and the like), on our classes.

Left out: what needs a second device.
"""

import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnext
from rnnext import ops, reference

pytest.importorskip("expecttest", reason="torch's module database imports it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls in [getattr(nn, name) for name in NAMES]
}

every_module = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in leaves(part)]


def samples(
    name: str,
    dtype: torch.dtype = torch.float64,
    training: bool = True,
    requires_grad: bool = False,
) -> list[tuple[Any, Any, Any, Any]]:
    """Our module, nn's twin, the arguments of forward and the database's reference function."""
    more = {"with_packed_sequence": True} if name in ("GRU", "RNN") else {}
    inputs = INFOS[name].module_inputs_func(
        INFOS[name],
        device="cpu",
        dtype=dtype,
        requires_grad=requires_grad,
        training=training,
        **more,
    )
    found = []
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        pair = []
        for package in (rnnext, nn):
            torch.manual_seed(0)
            module = getattr(package, name)(*args, **kwargs, device="cpu", dtype=dtype)
            pair.append(module.train(training))
        found.append((*pair, sample.forward_input.args, sample.reference_fn))
    assert found
    return found


@every_module
@every_dtype
@pytest.mark.parametrize("training", [True, False])
def test_forward(name: str, dtype: torch.dtype, training: bool) -> None:
    for ours, theirs, args, reference_fn in samples(name, dtype, training):
        results = leaves(ours(*args))
        for a, b in zip(results, leaves(theirs(*args)), strict=True):
            torch.testing.assert_close(a, b)
        if reference_fn is not None and not isinstance(args[0], PackedSequence):
            expected = reference_fn(ours, *args)
            for a, b in zip(results, leaves(expected), strict=True):
                torch.testing.assert_close(a, b)


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
def test_repr_pickle_and_state_dict(name: str) -> None:
    for ours, theirs, args, _ in samples(name):
        assert repr(ours) == repr(theirs)
        twin = pickle.loads(pickle.dumps(ours))
        twin.load_state_dict(theirs.state_dict())
        assert all(map(torch.equal, leaves(twin(*args)), leaves(ours(*args))))


@every_module
def test_factory_arguments_and_device_context(name: str) -> None:
    for ours, *_ in samples(name)[:1]:
        sizes = (ours.input_size, ours.hidden_size)
        kind = type(ours)
        with torch.device("meta"):
            inside = kind(*sizes)
        for module in (inside, kind(*sizes, device="meta", dtype=torch.float16)):
            assert all(p.is_meta for p in module.parameters())
        assert {p.dtype for p in module.parameters()} == {torch.float16}
        empty = inside.to_empty(device="cpu")
        assert not any(p.is_meta for p in empty.parameters())


@every_module
def test_non_contiguous_tensors(name: str) -> None:
    def spread(t: Any) -> Any:
        if isinstance(t, PackedSequence):
            return t._replace(data=spread(t.data))
        if isinstance(t, tuple):
            return tuple(map(spread, t))
        return t.repeat_interleave(2, -1)[..., ::2]

    for ours, _, args, _ in samples(name):
        before = leaves(ours(*args))
        for p in ours.parameters():
            p.data = spread(p.data)
        for a, b in zip(leaves(ours(*map(spread, args))), before, strict=True):
            torch.testing.assert_close(a, b)


@every_module
@pytest.mark.parametrize("twice", [False, True], ids=["grad", "gradgrad"])
def test_gradients(name: str, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if twice:
        # Second derivatives are the reference's; what the kernels give is tested with them.
        monkeypatch.setattr(ops, "rnn", reference.rnn)
    check = torch.autograd.gradgradcheck if twice else torch.autograd.gradcheck
    for ours, _, args, _ in samples(name, requires_grad=True):
        inputs, shape = torch.utils._pytree.tree_flatten(
            args, is_leaf=lambda a: isinstance(a, PackedSequence)
        )
        packed = isinstance(inputs[0], PackedSequence)
        if packed and twice:
            continue
        tensors = [inputs[0].data, *inputs[1:]] if packed else inputs

        def run(*values: Tensor, given: Any = (ours, inputs, shape, packed)) -> Any:
            module, inputs, shape, packed = given
            values = values[: len(inputs)]
            if packed:
                values = (inputs[0]._replace(data=values[0]), *values[1:])
            return tuple(leaves(module(*torch.utils._pytree.tree_unflatten(values, shape))))

        assert check(run, (*tensors, *ours.parameters()), fast_mode=True)


@every_module
def test_training_mode_is_read_only_where_it_matters(name: str) -> None:
    for ours, _, args, _ in samples(name):
        del ours.training
        ours(*args)
