"""float16 and bfloat16: computed in float32 and rounded, by every layer and cell; in bfloat16 the
products' operands are rounded too (test_bfloat16.py).
"""

import copy
from typing import Any

import pytest
import torch
from cases import CELLS, NN_CELLS, PACKED, Case, Data, error, torch_nn
from test_bfloat16 import with_bfloat16
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from twins import tensors
from written_cells import LightGRU, Peephole, Zoneout

import rnnext
from rnnext import ops, reference
from rnnext.codegen import build

HALF = [torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error:rnnext has no kernel"),
]
LAYERS = [rnnext.LSTM, rnnext.GRU, rnnext.RNN, Peephole, Zoneout]
KINDS = [*LAYERS, rnnext.LSTMCell, rnnext.GRUCell, rnnext.RNNCell]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
# Beside the depth so few rows that no operand is rounded: results are those of float32.
T, N, C, H = 3, 4, 64, 64


@every_dtype
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", [Case(T=30, N=5, C=9, H=40, L=2, D=2), PACKED], ids=str)
def test_results_are_those_of_float32_rounded(cell: str, case: Case, dtype: torch.dtype) -> None:
    data = Data(cell, case).rounded(dtype)
    exact, half = data.reference(), data.run(ops.rnn, dtype)
    run = with_bfloat16 if dtype == torch.bfloat16 else ops.rnn
    single = data.run(run, torch.float32)
    for name in data.names:
        assert torch.equal(half[name], single[name].to(dtype)), name
        if dtype == torch.float16:
            # To round to p bits is to be wrong by at most eps / 2.
            assert error(half[name], exact[name]) <= 0.51 * torch.finfo(dtype).eps, name


@every_dtype
@pytest.mark.parametrize("case", [Case(T=30, N=5, C=9, H=40, L=2, D=2), PACKED], ids=str)
def test_inference_has_the_bits_of_training(case: Case, dtype: torch.dtype) -> None:
    data = Data("LSTM", case).rounded(dtype)
    inputs = data.split(data.inputs(dtype))
    expected = ops.rnn("LSTM", *inputs, **data.options)
    with torch.no_grad():
        results = ops.rnn("LSTM", *inputs, **data.options)
        compiled = torch.compile(ops.rnn, fullgraph=True)("LSTM", *inputs, **data.options)
    for a, b, c in zip(expected, results, compiled, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not results[0].requires_grad


def test_the_op_converts_half_precision_where_it_keeps_nothing() -> None:
    data = Data("GRU", Case(T=5, N=2, C=4, H=5))
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    options = (None, None, 1, False, 0.0, None)
    half = torch.float16
    arguments = ("GRU", x.to(half), h0, weights, *options, half)
    torch.library.opcheck(torch.ops.rnnext.rnn.default, arguments)
    for a, b in zip(
        torch.ops.rnnext.rnn(*arguments),
        torch.ops.rnnext.rnn("GRU", x.to(half).float(), h0, weights, *options, half),
        strict=True,
    ):
        assert torch.equal(a, b)
        assert a.dtype == torch.float32
    for run, more in ((torch.ops.rnnext.rnn, ()), (torch.ops.rnnext.rnn_train, (half,))):
        with pytest.raises(RuntimeError, match=r"x is .*Half|but x is Half"):
            run("GRU", x.to(half), h0, weights, *options, *more)


@pytest.mark.parametrize("cell", NN_CELLS)
def test_bfloat16_is_closer_to_the_truth_than_nns(cell: str) -> None:
    data = Data(cell, Case(T=30, N=5, C=9, H=40)).rounded(torch.bfloat16)
    exact = data.reference()
    ours, theirs = (data.run(function, torch.bfloat16) for function in (ops.rnn, torch_nn))
    for name in data.names:
        assert ours[name].dtype == theirs[name].dtype
        assert error(ours[name], exact[name]) <= error(theirs[name], exact[name]), name


@pytest.mark.parametrize("where", ["an initial state", "a weight"])
@pytest.mark.parametrize("other", [torch.float32, torch.float16], ids=str)
def test_a_mixture_of_dtypes_is_refused(where: str, other: torch.dtype) -> None:
    data = Data("GRU", Case(T=3, N=2, C=4, H=5))
    x, h0, weights = data.split([t.detach().bfloat16() for t in data.inputs(torch.float32)])
    mixed = h0 if where == "an initial state" else weights
    mixed[-1] = mixed[-1].to(other)
    with pytest.raises(RuntimeError, match=f"{where} is .* but x is BFloat16; convert one"):
        ops.rnn("GRU", x, h0, weights, **data.options)


def make(kind: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(*(args or (C, H)), **options)


def run(module: Any, x: Tensor, **options: Any) -> list[Tensor]:
    torch.manual_seed(1)
    return tensors(module(x, **options))


@every_dtype
@every_kind
def test_layers_and_cells_give_the_dtype_they_have(kind: Any, dtype: torch.dtype) -> None:
    module = make(kind).to(dtype)
    wide = copy.deepcopy(module).float()
    x = torch.randn((N, C) if "Cell" in kind.__name__ else (T, N, C)).to(dtype)
    for training in (True, False):
        given = x.clone().requires_grad_()
        half, single = run(module.train(training), given), run(wide.train(training), x.float())
        assert [t.dtype for t in half] == [dtype] * len(half)
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(half, single, strict=True))
        sum(t.sum() for t in half).backward()
        assert {p.grad.dtype for p in (given, *module.parameters())} == {dtype}
    with torch.no_grad():
        assert all(map(torch.equal, run(module, x), half))
    meta = run(copy.deepcopy(module).to("meta"), x.to("meta"))
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in half]


@every_dtype
@pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k.__name__)
def test_lengths_packed_input_and_states(kind: Any, dtype: torch.dtype) -> None:
    layer = make(kind, num_layers=2, bidirectional=True).to(dtype).eval()
    wide = copy.deepcopy(layer).float()
    x = torch.randn(T, N, C).to(dtype)
    hx = layer(x)[1]
    hx_wide = tuple(h.float() for h in hx) if isinstance(hx, tuple) else hx.float()
    packed = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]))
    for half, single in (
        (layer(x, hx, lengths=[2, 3, 1, 3]), wide(x.float(), hx_wide, lengths=[2, 3, 1, 3])),
        (layer(packed, hx), wide(packed.float(), hx_wide)),
    ):
        for a, b in zip(tensors(half), tensors(single), strict=True):
            assert torch.equal(a, b.to(dtype))


def test_double_backward_and_transforms() -> None:
    layer = make(rnnext.GRU).bfloat16()
    wide = copy.deepcopy(layer).float()
    x, v = torch.randn(2, T, N, C).bfloat16()
    results = []
    for module, dtype in ((layer, torch.bfloat16), (wide, torch.float32)):

        def loss(x: Tensor, module: Any = module) -> Tensor:
            return module(x)[0].float().square().sum()

        given = x.to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(loss(given), given, create_graph=True)
        (hvp,) = torch.autograd.grad(grad, given, v.to(dtype))
        primal, tangent = torch.func.jvp(loss, (x.to(dtype),), (v.to(dtype),))
        found = [grad, hvp, primal, tangent, torch.func.grad(loss)(x.to(dtype))]
        assert grad.dtype == hvp.dtype == found[-1].dtype == dtype
        results.append(found)
    for half, single in zip(*results, strict=True):
        assert error(half.detach(), single.detach()) < 0.02


@every_kind
def test_compiled_whole(kind: Any) -> None:
    module = make(kind).bfloat16().eval()
    x = torch.randn((N, C) if "Cell" in kind.__name__ else (T, N, C)).bfloat16()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    results = []
    for function in (module, compiled):
        outputs = tensors(function(x))
        loss = sum(t.float().square().sum() for t in outputs)
        grads = torch.autograd.grad(loss, [x, *module.parameters()], materialize_grads=True)
        results.append([*outputs, *grads])
    for expected, result in zip(*results, strict=True):
        assert torch.equal(result, expected)


@every_dtype
@every_kind
def test_an_input_may_be_changed_before_backward(kind: Any, dtype: torch.dtype) -> None:
    """What backward reads of it is the copy that was made."""
    module, found = make(kind).to(dtype).eval(), []
    x = torch.randn((N, C) if "Cell" in kind.__name__ else (T, N, C)).to(dtype)
    for changed in (False, True):
        loss = sum(t.float().square().sum() for t in tensors(module(x)))
        if changed:
            x.zero_()
        found.append(torch.autograd.grad(loss, [*module.parameters()], materialize_grads=True))
    assert all(map(torch.equal, *found))


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.layers, self.last = nn.Linear(C, C), nn.ModuleList(layers), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.last(x)


def test_a_model_in_bfloat16_learns() -> None:
    model = Model(make(rnnext.LSTM, C, 16), make(LightGRU, 16, H)).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x = torch.randn(T, N, C, dtype=torch.bfloat16)
    target = x.cumsum(0).mean(-1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@every_dtype
def test_without_a_compiler_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(LightGRU):
        pass

    monkeypatch.setattr(build, "kernel", lambda cell: None)
    layer = make(Mine).to(dtype)
    x = torch.randn(T, N, C).to(dtype)
    y = layer(x)[0]
    weights = [w.float() for w in layer.parameters()]
    expected = reference.rnn(layer.declaration, x.float(), [], weights)[0]
    assert torch.equal(y, expected.to(dtype))
