"""The ops called directly with arguments that do not fit together: an exception, never a crash."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import Case, Data
from test_wrong_use import DTYPES, MISUSES, described, raised
from torch import Tensor
from written_cells import ZOO

import rnnext
from rnnext import ops, reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:rnnext has no kernel"),
    pytest.mark.filterwarnings("ignore:.*[Qq]uantize"),
    pytest.mark.filterwarnings("ignore:.*Sparse"),
]

CELLS = ("LSTM", "LSTM_PROJ", "Peephole")
PADDED = Case(T=3, N=2, C=2, H=4, L=2, D=2)
PACKED = Case(T=3, N=2, C=2, H=4, L=2, lengths=(3, 2))

cells = pytest.mark.parametrize("cell", CELLS)
cases = pytest.mark.parametrize("case", [PADDED, PACKED], ids=["padded", "packed"])


def data_of(cell: str, case: Case) -> Data:
    if cell not in reference.CELLS:
        cell = str(ZOO[cell](1, 1)._cell_name())
    return Data(cell, case)


def call_of(data: Data) -> dict[str, Any]:
    """The arguments of `rnnext::rnn`."""
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float64)])
    return {"cell": data.cell, "x": x, "h0": h0, "weights": weights, **data.options}


def on(convert: Callable[[Tensor], Tensor], call: dict[str, Any]) -> dict[str, Any]:
    """All tensors converted."""
    return {
        "x": convert(call["x"]),
        "h0": list(map(convert, call["h0"])),
        "weights": list(map(convert, call["weights"])),
    }


EDITS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no such cell": lambda c: {"cell": "LSTN"},
    "an empty name": lambda c: {"cell": ""},
    "another cell": lambda c: {"cell": "GRU"},
    "no layers": lambda c: {"num_layers": 0},
    "fewer than no layers": lambda c: {"num_layers": -(2**63)},
    "layers without end": lambda c: {"num_layers": 2**62, "bidirectional": True, "weights": []},
    "layers too many": lambda c: {"num_layers": 3},
    "another direction": lambda c: {"bidirectional": not c["bidirectional"]},
    "no weights": lambda c: {"weights": []},
    "one weight": lambda c: {"weights": c["weights"][:1]},
    "weights twice": lambda c: {"weights": c["weights"] * 2},
    "weights backwards": lambda c: {"weights": c["weights"][::-1]},
    "flat weights": lambda c: {"weights": [w.flatten() for w in c["weights"]]},
    "empty weights": lambda c: {"weights": [w[:0] for w in c["weights"]]},
    "one state": lambda c: {"h0": c["h0"][:1]},
    "states too many": lambda c: {"h0": c["h0"] * 2},
    "integers": lambda c: on(Tensor.long, c),
    "complex numbers": lambda c: on(lambda t: t.to(torch.complex128), c),
    "bits": lambda c: on(Tensor.bool, c),
    "states on meta": lambda c: {"h0": [h.to("meta") for h in c["h0"]]},
    "weights on meta": lambda c: {"weights": [w.to("meta") for w in c["weights"]]},
    "dropout nan": lambda c: {"dropout": float("nan")},
    "dropout infinite": lambda c: {"dropout": float("inf")},
    "dropout negative": lambda c: {"dropout": -0.5},
    "two seeds": lambda c: {"seed": torch.tensor([1, 2])},
    "no seed": lambda c: {"seed": torch.tensor([], dtype=torch.int64)},
    "a seed of another type": lambda c: {"seed": torch.tensor(1.0)},
    "a seed elsewhere": lambda c: {"seed": torch.tensor(1, device="meta")},
    "a size more": lambda c: {"sizes": (*c["sizes"], 3)},
    "negative sizes": lambda c: {"sizes": (-1,) * max(1, len(c["sizes"]))},
    "huge sizes": lambda c: {"sizes": (2**62,) * max(1, len(c["sizes"]))},
    "no steps": lambda c: (
        {"x": c["x"][:0]}
        if c["batch_sizes"] is None
        else {"x": c["x"][:0], "batch_sizes": c["batch_sizes"][:0]}
    ),
    "batch_sizes of one step": lambda c: {"batch_sizes": torch.tensor([2])},
    "batch_sizes on meta": lambda c: {"batch_sizes": torch.tensor([2, 2, 1], device="meta")},
    "batch_sizes without end": lambda c: {"batch_sizes": torch.full((4,), 2**62)},
    "more than can be copied": lambda c: {
        "x": c["x"][..., :1].expand(*c["x"].shape[:-1], 2**50),
        "weights": [
            w[:, :1].expand(-1, 2**50) if w.dim() == 2 and w.size(1) == 2 else w
            for w in c["weights"]
        ],
    },
}


@cells
@cases
@pytest.mark.parametrize("edit", EDITS)
def test_arguments_that_do_not_fit(cell: str, case: Case, edit: str) -> None:
    good = call_of(data_of(cell, case))
    call = {**good, **EDITS[edit](good)}
    for op in (torch.ops.rnnext.rnn, torch.ops.rnnext.rnn_train):
        error = raised(op, *call.values())
        assert isinstance(error, (RuntimeError, ValueError)), f"{op}: {error!r}"
    if edit != "complex numbers":  # which the reference can take
        assert isinstance(raised(ops.rnn, **call), (RuntimeError, ValueError))


def backward_of(cell: str, case: Case) -> dict[str, Any]:
    """The arguments of `rnnext::rnn_backward`."""
    data = data_of(cell, case)
    call = call_of(data)
    y, *rest = torch.ops.rnnext.rnn_train(*call.values())
    states = len(data.grads) - 1
    inputs = 1 + len(call["h0"]) + len(call["weights"])
    first = {"grads": data.grads, "y": y, "saved": rest[states:]}
    return {**first, **call, "output_mask": [True] * inputs}


def wrong_tensors(call: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The call with each tensor in it, and the length of each list, made wrong in every way."""
    for key, value in call.items():
        if isinstance(value, Tensor):
            yield from ((f"{key}: {how}", {**call, key: v}) for how, v in wrong(value))
        elif isinstance(value, list):
            for how, other in (
                ("none", []),
                ("one less", value[:-1]),
                ("one more", [*value, value[-1]]),
            ):
                yield f"{key}: {how}", {**call, key: other}
            for k, tensor in enumerate(value):
                if isinstance(tensor, Tensor):
                    for how, v in wrong(tensor):
                        changed = [*value[:k], v, *value[k + 1 :]]
                        yield f"{key}[{k}]: {how}", {**call, key: changed}


def wrong(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    for how, change in MISUSES.items():
        axis = how.partition("axis ")[2][:1]
        if (axis and int(axis) >= tensor.dim()) or how in ("nested", "an array"):
            continue  # an array is taken for a tensor
        changed = change(tensor)
        same = isinstance(changed, Tensor) and described(changed) == described(tensor)
        if not same:
            yield how, changed


@cells
@cases
@pytest.mark.parametrize("twice", [False, True])
def test_no_tensor_of_a_backward_may_be_another(cell: str, case: Case, twice: bool) -> None:
    call = backward_of(cell, case)
    call["x"].requires_grad_(twice)
    expected = torch.ops.rnnext.rnn_backward(*call.values())
    optional = ("grads", "batch_sizes", "seed")
    for what, bad in wrong_tensors(call):
        error = raised(torch.ops.rnnext.rnn_backward, *bad.values())
        allowed: Any = (RuntimeError, ValueError, TypeError)
        if what.startswith(optional) and what.endswith("None"):
            allowed = (*allowed, type(None))
        assert isinstance(error, allowed), f"{what}: {error!r}"
    strided = {
        **call,
        "y": spread(call["y"]),
        "saved": list(map(spread, call["saved"])),
        "grads": list(map(spread, call["grads"])),
    }
    for a, b in zip(torch.ops.rnnext.rnn_backward(*strided.values()), expected, strict=True):
        assert torch.equal(a, b)


def spread(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2]


@cells
def test_no_tensor_of_a_jvp_may_be_another(cell: str) -> None:
    call = call_of(data_of(cell, PADDED))
    keys = list(call)
    tangents = {f"d{key}": call[key] for key in ("x", "h0", "weights")}
    order = [*keys[:4], *tangents, *keys[4:]]
    good = {key: {**call, **tangents}[key] for key in order}
    torch.ops.rnnext.rnn_jvp(*good.values())
    for key in tangents:
        for what, bad in wrong_tensors({key: good[key]}):
            if key == "dx" and what.endswith(DTYPES):
                continue  # torch.stack makes one dtype of two
            error = raised(torch.ops.rnnext.rnn_jvp, *{**good, **bad}.values())
            assert isinstance(error, (RuntimeError, ValueError, TypeError)), f"{what}: {error!r}"


def test_cells_are_known_by_name_and_sizes() -> None:
    for name, sizes in (("LSTM", [2**62]), ("LSTM", [-1]), ("LSTM", []), ("LSTM_PROJ", [4, 0])):
        with pytest.raises(RuntimeError, match="size"):
            torch.ops.rnnext.cell_shape(name, sizes)
    with pytest.raises(ValueError, match="no cell is called 'x'"):
        torch.ops.rnnext.cell_shape("x", [1])


def test_libraries_without_a_cell(tmp_path: Any) -> None:
    empty = tmp_path / "cell.so"
    empty.write_bytes(b"")
    other = torch._C.__file__
    for path in (tmp_path, tmp_path / "none.so", empty, other, ""):
        with pytest.raises(RuntimeError, match=r"does not load|holds no cell"):
            torch.ops.rnnext.load_cell(str(path))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LightGRU"])
def test_more_elements_than_32_bits_count_have_their_shapes_on_meta(name: str) -> None:
    kind = getattr(rnnext, name, None) or ZOO[name]
    layer = kind(2**20, 2**20, 2, bidirectional=True, device="meta")
    y, states = layer(torch.empty(2**10, 2**16, 2**20, device="meta"))
    assert y.shape == (2**10, 2**16, 2**21)
    for state in states if isinstance(states, tuple) else (states,):
        assert state.shape == (4, 2**16, 2**20)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cell": "LSTN"}, ValueError),
        ({"weights": []}, ValueError),
        ({"h0": [torch.zeros(2, 2, 4)]}, ValueError),
        ({"h0": [torch.zeros(2, 2, 3)] * 2}, RuntimeError),
        ({"sizes": (3,)}, ValueError),
        ({"num_layers": 3}, ValueError),
        ({"x": torch.zeros(0, 2, 2, dtype=torch.float64)}, RuntimeError),
        ({"x": torch.zeros(3, 2, 5, dtype=torch.float64)}, RuntimeError),
        ({"x": torch.zeros(3, 2, 2)}, RuntimeError),
        ({"batch_sizes": torch.tensor([], dtype=torch.int64)}, RuntimeError),
    ],
    ids=str,
)
def test_the_reference_refuses_what_its_loop_would_misread(
    change: dict[str, Any], error: type[Exception]
) -> None:
    call = {**call_of(Data("LSTM", PADDED)), **change}
    with pytest.raises(error):
        reference.rnn(**call)
