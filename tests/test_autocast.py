"""Autocast: every layer and cell gives its dtype, computed in float32 from what was given."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import error
from test_half import LAYERS, C, H, Model, N, T, every_dtype, every_kind, make, run
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from twins import tensors
from written_cells import LightGRU, Peephole

import rnnext
from rnnext import reference
from rnnext.codegen import build

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error:rnnext has no kernel"),
]
LOW = (torch.float32, torch.bfloat16, torch.float16)


def input_of(kind: Any) -> Tensor:
    return torch.randn((N, C) if "Cell" in kind.__name__ else (T, N, C))


def to(states: Any, dtype: torch.dtype) -> Any:
    return tuple(h.to(dtype) for h in states) if isinstance(states, tuple) else states.to(dtype)


@every_dtype
@every_kind
def test_every_mixture_gives_autocasts_dtype(kind: Any, dtype: torch.dtype) -> None:
    module, x = make(kind).eval(), input_of(kind)
    hx = module(x) if "Cell" in kind.__name__ else module(x)[1]
    for of_weights, of_x, of_states in itertools.product(LOW, LOW, LOW):
        cast = copy.deepcopy(module).to(of_weights)
        given, states = x.to(of_x), to(hx, of_states)
        expected = tensors(copy.deepcopy(cast).float()(given.float(), to(states, torch.float32)))
        with torch.autocast("cpu", dtype):
            results = tensors(cast(given, states))
        for a, b in zip(results, expected, strict=True):
            # The input keeps its bits: it is not rounded first.
            assert torch.equal(a, b.to(dtype))


@every_kind
def test_float64_is_left_alone(kind: Any) -> None:
    module, x = make(kind).eval(), input_of(kind)
    hx = module(x) if "Cell" in kind.__name__ else module(x)[1]
    wide = copy.deepcopy(module).double()
    expected = tensors(wide(x.double(), to(hx, torch.float64)))
    mismatch = "RNN input dtype .* does not match weight dtype"
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, tensors(wide(x.double(), to(hx, torch.float64))), expected))
        for a, b in ((wide, x), (module, x.double())):
            with pytest.raises((ValueError, RuntimeError), match=mismatch):
                a(b)
        with pytest.raises(RuntimeError, match="Input and hidden tensors are not the same dtype"):
            module(x, to(hx, torch.float64))


@every_kind
def test_regions_nest(kind: Any) -> None:
    module, x = make(kind).eval(), input_of(kind)
    plain = tensors(module(x))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert all(map(torch.equal, tensors(module(x)), plain))
        with torch.autocast("cpu", torch.float16):
            inner = tensors(module(x))
        outer = tensors(module(x))
    assert {t.dtype for t in inner} == {torch.float16}
    assert {t.dtype for t in outer} == {torch.bfloat16}
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        assert all(map(torch.equal, tensors(module(x)), plain))


@pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k.__name__)
def test_packed_input_and_lengths(kind: Any) -> None:
    layer, x = make(kind, num_layers=2, bidirectional=True).eval(), torch.randn(T, N, C)
    packed = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]))
    expected = [layer(packed), layer(x, lengths=[2, 3, 1, 3])]
    with torch.autocast("cpu", torch.bfloat16):
        results = [layer(packed), layer(x, lengths=[2, 3, 1, 3])]
    for a, b in zip(tensors(results), tensors(expected), strict=True):
        assert torch.equal(a, b.bfloat16())


@every_dtype
@every_kind
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward after"])
def test_gradients_are_float32s(kind: Any, dtype: torch.dtype, inside: bool) -> None:
    module, x = make(kind), input_of(kind).requires_grad_()
    leaves = [x, *module.parameters()]
    with torch.autocast("cpu", dtype):
        results = run(module, x)
        toward = [torch.randn_like(t) for t in results]
        if inside:
            grads = torch.autograd.grad(results, leaves, toward, materialize_grads=True)
    if not inside:
        grads = torch.autograd.grad(results, leaves, toward, materialize_grads=True)
    wide = [g.float() for g in toward]
    expected = torch.autograd.grad(run(module, x), leaves, wide, materialize_grads=True)
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b) if dtype == torch.float16 else error(a, b) < 0.01


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k.__name__)
def test_checkpointed(kind: Any, use_reentrant: bool) -> None:
    layer, x, found = make(kind), input_of(kind).requires_grad_(), []
    for wrapped in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            if wrapped:
                y, _ = checkpoint(layer, x, use_reentrant=use_reentrant)
            else:
                y, _ = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append([y, x.grad, *(p.grad for p in layer.parameters())])
        x.grad = None
        layer.zero_grad()
    assert all(map(torch.equal, *found))


@every_kind
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_compiled_whole(kind: Any, where: str) -> None:
    module, x = make(kind).eval(), input_of(kind).requires_grad_()

    def inside(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return tensors(module(x))

    torch._dynamo.reset()
    function = inside if where == "inside" else module
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
        found = [tensors(compiled(x)), tensors(function(x))]
    if where == "outside":
        # The same compiled function, where autocast is off.
        assert {t.dtype for t in tensors(compiled(x))} == {torch.float32}
    leaves = [x, *module.parameters()]
    for results in found:
        assert {t.dtype for t in results} == {torch.bfloat16}
        loss = sum(t.float().square().sum() for t in results)
        results += torch.autograd.grad(loss, leaves, materialize_grads=True)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kinds", [(rnnext.LSTM, rnnext.GRU), (Peephole, LightGRU)], ids=str)
def test_a_model_learns(kinds: tuple[Any, Any]) -> None:
    model = Model(make(kinds[0], C, 16), make(kinds[1], 16, H))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x = torch.randn(T, N, C)
    target = x.cumsum(0).mean(-1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
            loss = torch.nn.functional.mse_loss(y.float(), target)
        loss.backward()
        assert y.dtype == torch.bfloat16
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@every_dtype
def test_without_a_compiler_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(LightGRU):
        pass

    monkeypatch.setattr(build, "kernel", lambda cell: None)
    layer, x = make(Mine), torch.randn(T, N, C)
    with torch.autocast("cpu", dtype):
        y = layer(x.bfloat16())[0]
    expected = reference.rnn(layer.declaration, x.bfloat16().float(), [], [*layer.parameters()])[0]
    assert torch.equal(y, expected.to(dtype))


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("kind", [rnnext.LSTM, rnnext.GRU, LightGRU], ids=lambda k: k.__name__)
def test_float32_stays_float32(kind: Any, precision: str, matmul_precision: None) -> None:
    layer, x = make(kind, 64, 128), torch.randn(20, 16, 64, requires_grad=True)
    results = []
    for chosen in ("highest", precision):
        torch.set_float32_matmul_precision(chosen)
        y = layer(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    assert all(map(torch.equal, *results))
