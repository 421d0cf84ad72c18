"""torch.compile takes layers and cells whole: no break, one graph for all sizes and lengths."""

# ruff: noqa: RUF012

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from written_cells import ZOO

import rnnext
from rnnext.lm.model import LanguageModel, detach
from rnnext.lm.options import ModelOptions

C, H = 6, 5
# No two sizes are the same, for torch would take them for one.
SIZES = ((13, 7), (9, 12), (17, 3))  # T, N

LAYERS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: rnnext.LSTM(C, H, 2, bidirectional=True, dropout=0.5),
    "LSTM_PROJ": lambda: rnnext.LSTM(C, H, 2, proj_size=2, batch_first=True),
    "GRU": lambda: rnnext.GRU(C, H, batch_first=True, bias=False),
    "RNN": lambda: rnnext.RNN(C, H, nonlinearity="relu"),
    "Everything": lambda: ZOO["Everything"](C, H, 2, out_size=4, key_size=2),
    "Leaky": lambda: ZOO["Leaky"](C, H, bidirectional=True, leak=0.3, activation="relu"),
    "SLSTM": lambda: ZOO["SLSTM"](C, H, batch_first=True),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def whole(module: nn.Module, backend: Any = "aot_eager", **options: Any) -> Any:
    return torch.compile(module, fullgraph=True, backend=backend, **options)


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [t for part in result for t in leaves(part)]


def as_given(tensors: list[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def states_of(layer: Any, *batch: int) -> Any:
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    return as_given([torch.randn(runs, *batch, width) for width in layer._states().values()])


def padded(layer: Any, t: int, n: int) -> Tensor:
    return torch.randn(n, t, C) if layer.batch_first else torch.randn(t, n, C)


def packed(t: int, n: int, enforce_sorted: bool) -> PackedSequence:
    lengths = torch.arange(n) % t + 1
    lengths[0] = t
    lengths = lengths.sort(descending=True).values if enforce_sorted else lengths
    return pack_padded_sequence(torch.randn(t, n, C), lengths, enforce_sorted=enforce_sorted)


def everything(module: Any, params: list[Tensor], x: Any, hx: Any, **options: Any) -> list[Tensor]:
    """The outputs and the gradients of all inputs and weights."""
    torch.manual_seed(5)
    inputs = [x.data if isinstance(x, PackedSequence) else x, *([] if hx is None else leaves(hx))]
    inputs = [t.detach().requires_grad_() for t in inputs]
    given = x._replace(data=inputs[0]) if isinstance(x, PackedSequence) else inputs[0]
    outputs = leaves(module(given, None if hx is None else as_given(inputs[1:]), **options))
    loss = sum(((k + 1) * o.sin()).sum() for k, o in enumerate(outputs))
    grads = torch.autograd.grad(loss, [*inputs, *params], materialize_grads=True)
    return [*outputs, *grads]


def same(compiled: Any, module: Any, x: Any, hx: Any = None, **options: Any) -> None:
    params = list(module.parameters())
    results = [everything(m, params, x, hx, **options) for m in (compiled, module)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


FORMS: dict[str, Callable[[Any, int, int], tuple[Any, Any, dict[str, Any]]]] = {
    "padded": lambda m, t, n: (padded(m, t, n), None, {}),
    "unbatched": lambda m, t, n: (torch.randn(t, C), states_of(m), {}),
    "lengths": lambda m, t, n: (
        *(padded(m, t, n), None),
        {"lengths": torch.randint(1, t + 1, (n,))},
    ),
    "lengths and hx": lambda m, t, n: (
        *(padded(m, t, n), states_of(m, n)),
        {"lengths": torch.randint(1, t + 1, (n,), dtype=torch.int32)},
    ),
    "packed": lambda m, t, n: (packed(t, n, True), None, {}),
    "packed unsorted, and hx": lambda m, t, n: (packed(t, n, False), states_of(m, n), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains_with_one_graph_for_all_sizes(name: str) -> None:
    layer = LAYERS[name]()
    compiled = whole(layer, dynamic=True)
    for form in FORMS.values():
        same(compiled, layer, *form(layer, *SIZES[0])[:2], **form(layer, *SIZES[0])[2])
        with torch.compiler.set_stance("fail_on_recompile"):
            for t, n in SIZES[1:]:
                x, hx, options = form(layer, t, n)
                same(compiled, layer, x, hx, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_inference(name: str) -> None:
    layer = LAYERS[name]().eval()
    compiled = whole(layer, dynamic=True)
    with torch.no_grad():
        for t, n in SIZES:
            x = padded(layer, t, n)
            for a, b in zip(leaves(compiled(x)), leaves(layer(x)), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell(name: str) -> None:
    cell = getattr(rnnext, name)(C, H)
    compiled = whole(cell, dynamic=True)
    for _, n in SIZES:
        same(compiled, cell, torch.randn(n, C))
        hx = [torch.randn(n, H) for _ in range(2 if name == "LSTMCell" else 1)]
        same(compiled, cell, torch.randn(n, C), as_given(hx))
    same(compiled, cell, torch.randn(C), as_given([torch.randn(H) for _ in hx]))


@pytest.mark.parametrize("lengths", [False, True])
def test_without_being_told_sizes_change_twice_at_most(lengths: bool) -> None:
    layer, counter = rnnext.GRU(C, H), CompileCounterWithBackend("aot_eager")
    compiled = whole(layer, counter)
    for t, n in (*SIZES, (5, 4), (2, 2), (100, 10)):
        options = {"lengths": torch.randint(1, t + 1, (n,))} if lengths else {}
        same(compiled, layer, torch.randn(t, n, C), **options)
    assert counter.frame_count == 2


def test_lengths_from_a_list() -> None:
    layer = rnnext.LSTM(C, H)
    compiled = whole(layer)
    for lengths in ([2, 4, 1], [1, 1, 3], (4, 4, 4)):
        same(compiled, layer, torch.randn(4, 3, C), lengths=lengths)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([3, 9, 1]), ValueError, r"in 1..4 \(T\), but lengths\[1\] is 9"),
        (torch.tensor([3, 1]), ValueError, "one entry for each of 3 rows, but got 2"),
        (torch.ones(3, 1, dtype=torch.int64), ValueError, r"one dimension, \[N\], .* \[3, 1\]"),
        (torch.ones(3), TypeError, "lengths must be integers.*float"),
    ],
)
def test_errors_of_lengths_are_those_without_compiling(
    lengths: Tensor, error: type[Exception], message: str
) -> None:
    compiled = whole(rnnext.GRU(C, H))
    with pytest.raises(error, match=message):
        compiled(torch.randn(4, 3, C), lengths=lengths)


def test_the_op_checks_states_of_packed_input() -> None:
    compiled = whole(rnnext.GRU(C, H))
    with pytest.raises(RuntimeError, match=r"an initial state has shape \[1, 2, 5\], .* \[1, 3, 5"):
        compiled(packed(4, 3, True), torch.randn(1, 2, H))


def test_the_first_call_of_all_makes_a_written_cell() -> None:
    class Fresh(rnnext.Recurrent):
        gates = ("a",)
        constants = {"slope": 1.0}

        def step(a, h, slope):  # type: ignore[no-untyped-def]
            return torch.tanh(slope * a) - 0.125 * h

    layer = Fresh(C, H, slope=0.5)
    compiled = whole(layer, dynamic=True)
    x = torch.randn(4, 3, C)
    first = compiled(x)[0]
    assert torch.equal(first, layer(x)[0])
    layer.slope = 0.25
    assert not torch.equal(layer(x)[0], first)
    assert torch.equal(compiled(x)[0], layer(x)[0])


class Tagger(nn.Module):
    """Layers of torch.nn, to be swapped, and written ones: one model for the slow compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(C, H, 2, bidirectional=True)
        self.second = ZOO["Everything"](2 * H, H, out_size=4, key_size=3).eval()
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Tensor:
        y, (h, _) = self.first(F.relu(x), hx, lengths=lengths)
        y, _ = self.second(y * h.mean())
        return self.cell(y.sum(0), y[0, :, :3]).softmax(-1)


def test_a_swapped_model_by_inductor(inductor_cache: None) -> None:
    model = rnnext.swap(Tagger())
    compiled = whole(model, "inductor", dynamic=True)
    for t, n in SIZES:
        lengths = torch.randint(1, t + 1, (n,))
        same(compiled, model, torch.randn(t, n, C), lengths=lengths)


def losses(model: LanguageModel, forward: Any) -> list[float]:
    """Of some steps of training on windows of a text, the last of which is shorter."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    state, found = None, []
    for window in (torch.arange(8 * 58).view(58, 8) ** 2 % 23).split(11):
        optimizer.zero_grad()
        logits, state = forward(window[:-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), window[1:].flatten())
        loss.backward()
        optimizer.step()
        state = detach(state)
        found.append(float(loss.detach()))
    return found


def test_the_language_model_trains_by_inductor(inductor_cache: None) -> None:
    options = ModelOptions("LSTM", embedding=16, hidden=12, layers=2, dropout=0.0)
    model, twin = LanguageModel(options, 23, "rnnext"), LanguageModel(options, 23, "rnnext")
    twin.load_state_dict(model.state_dict())
    expected = losses(twin, twin)
    assert expected[-1] < expected[0]
    found = losses(model, whole(model, "inductor", dynamic=True))
    assert found == pytest.approx(expected, rel=1e-5)
