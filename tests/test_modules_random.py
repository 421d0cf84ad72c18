"""Random calls of the layers and cells against torch.nn's, of written cells against the reference.

200 calls a run, always the same; HYPOTHESIS_PROFILE=nightly makes 2,000 new ones (conftest.py).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_modules import CELLS, LAYERS
from test_wrong_use import MISUSES, described, differs, raised
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import tensors
from written_cells import ZOO

import rnnext
from rnnext.stack import Stack

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:.*[Qq]uantize"),
]

WRITTEN = ["LightGRU", "MinimalGated", "ProjectedLSTM", "LayerNormLSTM"]
ZOO_CELLS = SimpleNamespace(**ZOO)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small calls wait for their threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Call:
    """A module, the arguments of one call, and what is differentiated."""

    name: str
    options: dict[str, Any]
    dtype: torch.dtype
    form: str
    T: int
    lengths: tuple[int, ...]  # of N sequences
    states: bool
    layouts: tuple[str, ...]  # of the input, the states and the weights, in turn
    wanted: int  # bits: which of them get a gradient
    toward: tuple[str, ...]  # what is given for the gradient of each output, in turn
    training: bool
    grad: bool
    seed: int

    @property
    def is_cell(self) -> bool:
        return "Cell" in self.name

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the input, and of the states if there are any."""
        columns, hidden = self.options["input_size"], self.options["hidden_size"]
        count, first = len(self.lengths), self.options.get("batch_first", False)
        if self.is_cell:
            rows = leading = () if self.form == "unbatched" else (count,)
        else:
            layers = self.options["num_layers"] * (1 + self.options["bidirectional"])
            leading = (layers,) if self.form == "unbatched" else (layers, count)
            rows = {
                "unbatched": (self.T,),
                "packed": (sum(self.lengths),),
                "sorted": (sum(self.lengths),),
            }.get(self.form, (count, self.T) if first else (self.T, count))
        shapes = {"x": (*rows, columns)}
        if self.states:
            shapes["h"] = (*leading, self.options.get("proj_size") or hidden)
            if "LSTM" in self.name:
                shapes["c"] = (*leading, hidden)
        return shapes

    def layout(self, k: int) -> str:
        return self.layouts[k % len(self.layouts)]

    def wants(self, k: int) -> bool:
        return self.grad and bool(self.wanted >> k % 16 & 1)


@st.composite
def calls(draw: st.DrawFn, names: list[str]) -> Call:
    def some(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    name, flag, few = some(*names), st.booleans(), st.integers(1, 9)
    options = {
        "input_size": draw(st.integers(1, 9) | st.sampled_from([16, 17, 31, 64])),
        "hidden_size": some(*range(1, 41), 64, 65, 200),
        "bias": draw(flag),
    }
    training, form = draw(flag), some("batched", "unbatched")
    lengths = draw(st.lists(few, min_size=1, max_size=9) | st.lists(few, min_size=17, max_size=40))
    steps = max(lengths)
    if "Cell" not in name:
        form = some("batched", "batched", "unbatched", "packed", "sorted", "lengths")
        layers = draw(st.integers(1, 3))
        options |= {
            "num_layers": layers,
            "bidirectional": draw(flag),
            "batch_first": draw(flag),
            # Masks differ from nn's, but for those that drop nothing or all.
            "dropout": 0.0 if layers == 1 else some(0.0, 1.0) if training else 0.5,
        }
        if name == "ProjectedLSTM" or (
            name == "LSTM" and options["hidden_size"] > 1 and draw(flag)
        ):
            options["proj_size"] = draw(st.integers(1, max(1, options["hidden_size"] - 1)))
        steps = some(steps, steps, steps, steps + 2, 33) if form != "packed" else steps
    if form == "sorted":
        lengths.sort(reverse=True)
    if form == "batched" and draw(st.integers(0, 19)) == 0:
        lengths = []
    layout = st.sampled_from(["plain", "plain", "transposed", "sliced", "expanded"])
    toward = st.sampled_from(["random", "random", "expanded", "sliced", "none", "zeros"])
    return Call(
        name=name,
        options=options,
        dtype=some(torch.float32, torch.float64),
        form=form,
        T=steps,
        lengths=tuple(lengths),
        states=draw(flag),
        layouts=tuple(draw(st.lists(layout, min_size=1, max_size=5))),
        wanted=some(2**16 - 1, 2**16 - 1, draw(st.integers(0, 2**16 - 1))),
        toward=tuple(draw(st.lists(toward, min_size=1, max_size=3))),
        training=training,
        grad=some(*[True] * 9, False),
        seed=draw(st.integers(0, 2**31)),
    )


def leaf(shape: tuple[int, ...], layout: str) -> Tensor:
    """What `view` makes a tensor of this shape of."""
    if layout == "transposed":
        return torch.randn(shape[::-1])
    if layout == "sliced":
        return torch.randn([2 * n + 1 for n in shape])
    return torch.randn(1, *shape[1:]) if layout == "expanded" else torch.randn(shape)


def view(leaf: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    if layout == "transposed":
        return leaf.permute(*reversed(range(leaf.dim())))
    if layout == "sliced":
        return leaf[(slice(1, None, 2),) * leaf.dim()]
    return leaf.expand(shape)


def made(call: Call, kind: Any) -> Any:
    """The module, its weights in their layouts; the same numbers for every kind."""
    torch.manual_seed(call.seed)
    name, *nonlinearity = call.name.split()
    options = {**call.options, **({"nonlinearity": nonlinearity[0]} if nonlinearity else {})}
    module = getattr(kind, name)(**options, dtype=call.dtype).train(call.training)
    scale = (1 + call.options["hidden_size"]) ** -0.5
    for k, p in enumerate(module.parameters(), 3):
        values = (leaf(p.shape, call.layout(k)) * scale).to(call.dtype)
        p.data = view(values, p.shape, call.layout(k))
        p.requires_grad_(call.wants(k))
    return module


def leaves_of(call: Call) -> dict[str, Tensor]:
    torch.manual_seed(call.seed + 1)
    return {
        key: leaf(shape, call.layout(k)).to(call.dtype).requires_grad_(call.wants(k))
        for k, (key, shape) in enumerate(call.shapes().items())
    }


def result_of(call: Call, module: Any, x: Tensor, hx: Any) -> Any:
    if call.form in ("batched", "unbatched"):
        return module(x, hx)
    first, lengths = module.batch_first, list(call.lengths)
    if call.form == "lengths":
        if isinstance(module, Stack):
            return module(x, hx, lengths=lengths)
        packed = pack_padded_sequence(x, lengths, first, enforce_sorted=False)
        y, states = module(packed, hx)
        return pad_packed_sequence(y, first, total_length=call.T)[0], states
    rows = torch.empty(max(lengths), len(lengths), 1)
    packed = pack_padded_sequence(rows, lengths, enforce_sorted=call.form == "sorted")
    return module(packed._replace(data=x), hx)


def arguments(call: Call, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The input x and the states h and c, in their layouts."""
    shapes = call.shapes().items()
    return {key: view(leaves[key], s, call.layout(k)) for k, (key, s) in enumerate(shapes)}


def together(x: Any, **states: Any) -> tuple[Any, Any]:
    """The input, and the states as a module takes them."""
    hx = tuple(states.values())
    return x, None if not hx else hx[0] if len(hx) == 1 else hx


def run(call: Call, module: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every output, and the gradients that the call wants, by name."""
    torch.manual_seed(call.seed)
    with torch.set_grad_enabled(call.grad):
        outputs = tensors(result_of(call, module, *together(**arguments(call, leaves))))
    inputs = {**leaves, **dict(module.named_parameters())}
    wanted = {key: tensor for key, tensor in inputs.items() if tensor.requires_grad}
    results = {f"output {k}": t for k, t in enumerate(outputs)}
    assert any(t.requires_grad for t in outputs) == bool(wanted)
    torch.manual_seed(call.seed + 2)
    given = [toward(t, call.toward[k % len(call.toward)]) for k, t in enumerate(outputs)]
    pairs = [
        (t, g) for t, g in zip(outputs, given, strict=True) if t.requires_grad and g is not None
    ]
    grads = map(torch.zeros_like, wanted.values())
    if wanted and pairs:
        grads = torch.autograd.grad(
            [t for t, _ in pairs],
            [*wanted.values()],
            [g for _, g in pairs],
            materialize_grads=True,  # what an output does not depend on gets None from nn
        )
    results |= {f"d{key}": g for key, g in zip(wanted, grads, strict=True)}
    return {key: t.detach() for key, t in results.items()}


def toward(output: Tensor, kind: str) -> Tensor | None:
    """A gradient to be given for an output."""
    if kind in ("none", "zeros"):
        return None if kind == "none" else torch.zeros_like(output)
    layout = {"random": "plain"}.get(kind, kind)
    return view(leaf(output.shape, layout).to(output.dtype), output.shape, layout)


def compare(call: Call, ours: Any, theirs: Any) -> None:
    """Every value is as exact as nn's (twice its error), or as rounding lets it be.

    That is the rounding of the sums that it went through, or eight times what comes of the inputs
    being rounded: where a sum cancels, both modules have few digits left.
    """
    leaves, wide = leaves_of(call), copy.deepcopy(theirs).double()
    mine, nns = run(call, ours, leaves), run(call, theirs, leaves)
    doubles = {
        key: t.detach().double().requires_grad_(t.requires_grad) for key, t in leaves.items()
    }
    exact = run(call, wide, doubles)
    eps = torch.finfo(call.dtype).eps
    with torch.no_grad():
        for t in (*doubles.values(), *wide.parameters()):
            t.copy_(t * (1 + eps * torch.randn_like(t)))
    moved = run(call, wide, doubles)
    length = call.options["input_size"] + call.options["hidden_size"] + call.T
    sums = 4 * eps * length * call.options.get("num_layers", 1)
    assert mine.keys() == nns.keys() == exact.keys()
    for key, value in mine.items():
        assert value.dtype == call.dtype
        assert value.shape == nns[key].shape
        errors = [error(results[key], exact[key]) for results in (mine, nns, moved)]
        assert errors[0] <= max(sums, 2 * errors[1], 8 * errors[2]), f"{key}: errors {errors}"


@given(call=calls([*LAYERS, *LAYERS, *CELLS]))
def test_random_calls_equal_nns(call: Call) -> None:
    compare(call, made(call, rnnext), made(call, nn))


@settings(max_examples=settings.default.max_examples // 10)
@given(call=calls(WRITTEN))
def test_random_calls_of_written_cells_equal_the_reference(call: Call) -> None:
    compiled, plain = made(call, ZOO_CELLS), made(call, ZOO_CELLS)
    plain._cell_name = lambda: None
    compare(call, compiled, plain)


@given(
    call=calls([*LAYERS, *LAYERS, *CELLS]),
    argument=st.sampled_from("xhc"),
    misuse=st.sampled_from([*MISUSES]),
)
def test_random_misuse_raises_what_nn_raises(call: Call, argument: str, misuse: str) -> None:
    assume(call.form != "lengths")  # nn would fail at packing
    form = "packed" if call.form == "sorted" else call.form
    given = arguments(call, {key: t.detach() for key, t in leaves_of(call).items()})
    assume(argument in given and call.lengths)
    axis = misuse.partition("axis ")[2][:1]
    assume(given[argument].dim() > (int(axis) if axis else misuse == "nested"))
    wrong = MISUSES[misuse](given[argument])
    assume(not (isinstance(wrong, Tensor) and described(wrong) == described(given[argument])))
    given[argument] = wrong
    error = differs(call.name, form, argument, misuse)
    if error is None:
        theirs = raised(result_of, call, made(call, nn), *together(**given))
        # nn lets some pass that ours refuse, such as packed rows that no sequence has.
        error = type(theirs) if theirs else (RuntimeError, ValueError, type(None))
    mine = raised(result_of, call, made(call, rnnext), *together(**given))
    assert isinstance(mine, error), f"{misuse}: {mine!r}"
