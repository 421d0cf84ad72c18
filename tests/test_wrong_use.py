"""Wrong use of everything public: an exception of nn's class where nn has one, never a crash."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_modules import CELLS, LAYERS
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from written_cells import ZOO

import rnnext
from rnnext.cell import declare

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:rnnext has no kernel"),
    pytest.mark.filterwarnings("ignore:.*[Qq]uantize"),
    pytest.mark.filterwarnings("ignore:.*Sparse"),
]

T, N, C, H = 5, 2, 3, 4


def quantized(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)


def repeated(t: Tensor, axis: int) -> Tensor:
    return torch.cat([t, t], axis)


DTYPES = ("float16", "bfloat16", "float32", "int64", "uint8", "bool", "complex128")
NO_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "a list": Tensor.tolist,
    "None": lambda t: None,
    "an array": lambda t: t.numpy(),
    "a string": lambda t: "x",
    "a number": lambda t: 1.0,
    "a tuple": lambda t: (t,),
}
MISUSES: dict[str, Callable[[Tensor], Any]] = {
    "one dimension more": lambda t: t.unsqueeze(0),
    "one dimension less": lambda t: t[0],
    "no dimension": Tensor.sum,
    **{f"axis {a} doubled": partial(repeated, axis=a) for a in range(3)},
    **{f"one of axis {a}": partial(Tensor.narrow, dim=a, start=0, length=1) for a in range(3)},
    **{f"none of axis {a}": partial(Tensor.narrow, dim=a, start=0, length=0) for a in range(3)},
    **{name: partial(Tensor.to, dtype=getattr(torch, name)) for name in DTYPES},
    "on meta": lambda t: t.to("meta"),
    "sparse": Tensor.to_sparse,
    "quantized": quantized,
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[0]]),
    **NO_TENSORS,
}
PAIRS: dict[str, Any] = {
    "one state": lambda h, c: (h,),
    "three states": lambda h, c: (h, c, h),
    "no states": lambda h, c: (),
    "a pair in a tuple": lambda h, c: ((h, c),),
    "a tensor": lambda h, c: h,
    "a string": lambda h, c: "hx",
    "a number": lambda h, c: 1.0,
    "two None": lambda h, c: (None, None),
}

# Where ours differ: module, form, argument ("": any), misuses (none: any), and what ours raise.
DIFFERENCES: tuple[tuple[str, str, str, Any, Any], ...] = (
    # A written cell says what it expects of hx.
    ("LightGRU", "", "h", tuple(NO_TENSORS), TypeError),
    # nn's loop takes some tensors that kernels don't, and fails somewhere inside with others.
    ("", "", "", ("sparse",), NotImplementedError),
    ("", "", "", ("nested",), (RuntimeError, ValueError)),
    ("", "", "", ("quantized",), (RuntimeError, ValueError)),
    # nn.LSTM and LSTMCell leave the dtype of c unchecked, and nn.LSTM all of packed input; with
    # wrong states it crashes there.
    ("LSTM", "", "c", DTYPES, RuntimeError),
    ("LSTM", "packed", "x", (), (RuntimeError, ValueError, AttributeError)),
    ("LSTM", "packed", "h", (), (RuntimeError, AttributeError)),
    ("LSTM", "packed", "c", (), (RuntimeError, AttributeError)),
    # nn fails at the first use of hx as a pair.
    ("LSTM", "", "hx", (), (RuntimeError, TypeError, AttributeError)),
    # nn brings states into packed order before it looks at their shape.
    ("", "packed", "h", ("no dimension", "one dimension less"), (RuntimeError, IndexError)),
    # nn leaves out what batch_sizes does not count.
    ("", "packed", "x", ("axis 0 doubled",), RuntimeError),
    ("", "packed", "", tuple(NO_TENSORS), (AttributeError, RuntimeError)),
)


def differs(name: str, form: str, argument: str, misuse: str) -> Any:
    """What ours raise where they differ from nn; None where they don't."""
    for module, where, what, misuses, error in DIFFERENCES:
        if (
            name.startswith(module)
            and where in ("", form)
            and what in ("", argument)
            and (not misuses or misuse in misuses)
        ):
            return error
    return None


def described(t: Tensor) -> tuple[Any, ...]:
    """What a misuse of a tensor changes, where it changes anything."""
    return None if t.is_nested else t.shape, t.dtype, t.layout, t.device


def raised(function: Callable[..., Any], *args: Any, **options: Any) -> Exception | None:
    try:
        function(*args, **options)
    except Exception as e:
        return e
    return None


def pair_of(name: str) -> tuple[Any, Any]:
    """nn's module and ours: written cells are compared with nn.GRU."""
    name, _, option = name.partition(" ")
    options: dict[str, Any] = {"dtype": torch.float64}
    if option:
        options |= {"proj_size": 2} if option == "proj" else {"nonlinearity": option}
    theirs = getattr(nn, name, nn.GRU)(C, H, **options)
    return theirs, (getattr(rnnext, name, None) or ZOO[name])(C, H, **options)


@pytest.mark.parametrize("name", [*LAYERS, "LSTM proj", "LightGRU", *CELLS])
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
def test_what_is_no_input_and_no_state(name: str, form: str) -> None:
    if "Cell" in name and form == "packed":
        form = "batched"
    theirs, ours = pair_of(name)
    rows = () if form == "unbatched" else (N,)
    width = 2 if name.endswith("proj") else H
    zeros = partial(torch.zeros, dtype=torch.float64)
    if "Cell" in name:
        x, h, c = zeros(*rows, C), zeros(*rows, H), zeros(*rows, H)
    else:
        x, h, c = zeros(T, *rows, C), zeros(1, *rows, width), zeros(1, *rows, H)
    packed = pack_padded_sequence(x, [T, T - 1]) if form == "packed" else None
    states = {"h": h, "c": c} if name.startswith("LSTM") else {"h": h}

    def check(argument: str, misuse: str, x: Any, *hx: Any) -> None:
        given = (x if packed is None else packed._replace(data=x), *hx)
        error, mine = differs(name, form, argument, misuse), raised(ours, *given)
        if error is None:
            expected = raised(theirs, *given)
            error = type(expected) if expected else type(None)
        where = f"{name}, {form}: {argument} is {misuse}"
        assert isinstance(mine, error), f"{where}: {mine!r}"

    def together(states: dict[str, Any]) -> Any:
        return tuple(states.values()) if len(states) > 1 else states["h"]

    if packed is not None:
        x = packed.data
    for misuse, change in MISUSES.items():
        for argument, tensor in {"x": x, **states}.items():
            axis = misuse.partition("axis ")[2][:1]
            if (axis and int(axis) >= tensor.dim()) or (misuse == "nested" and tensor.dim() < 2):
                continue
            if misuse == "None" and argument == "h" and len(states) == 1:
                continue  # the default
            wrong = change(tensor)
            if isinstance(wrong, Tensor) and described(wrong) == described(tensor):
                continue
            if argument == "x":
                check(argument, misuse, wrong)
                check(argument, misuse, wrong, together(states))
            else:
                check(argument, misuse, x, together({**states, argument: wrong}))
    if len(states) > 1:
        for misuse, change in PAIRS.items():
            check("hx", misuse, x, change(h, c))


ORDER = torch.tensor([2, 0, 1])
INVERSE = torch.tensor([1, 2, 0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LightGRU"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_sizes", [1, 2, 3], r"batch_sizes\[1\] is 2 after 1"),
        ("batch_sizes", [3, -2, 5], r"batch_sizes\[1\] is -2 after 3"),
        ("batch_sizes", [-3, 4, 5], r"batch_sizes\[0\] is -3"),
        ("batch_sizes", [0, 0, 0], r"batch_sizes\[0\] is 0"),
        ("batch_sizes", [3, 2], "packed input has 6 rows, but batch_sizes add up to 5"),
        ("batch_sizes", [2, 2], "has 6 rows, but batch_sizes add up to 4"),
        ("batch_sizes", [3, 2, 2], "packed x has 6 rows, but batch_sizes add up to 7"),
        ("batch_sizes", [2**62] * 4 + [6], r"packed x has 6 rows, but batch_sizes\[0\] is 46116"),
        ("batch_sizes", torch.tensor([3, 2, 1]).int(), "contiguous int64 .* got Int"),
        ("batch_sizes", torch.tensor([3.0, 2, 1]), "contiguous int64 .* got Float"),
        ("batch_sizes", torch.tensor([3, 0, 2, 0, 1])[::2], "must be a contiguous"),
        ("batch_sizes", torch.tensor([[3], [2], [1]]), r"\[T\], .* shape \[3, 1\]"),
        # What torch says of these is up to the operation that meets them first.
        ("batch_sizes", torch.tensor([[3, 2, 1]]), ""),
        ("batch_sizes", torch.tensor([3, 2, 1], device="meta"), ""),
        ("batch_sizes", [], ""),
        ("batch_sizes", torch.tensor(6), ""),
        ("batch_sizes", None, ""),
        ("sorted_indices", torch.tensor([0, 1, 3]), ""),
        ("sorted_indices", ORDER[:2], ""),
        ("sorted_indices", ORDER.float(), ""),
        ("sorted_indices", ORDER[None], ""),
        ("unsorted_indices", torch.tensor([0, 1, 3]), ""),
        ("unsorted_indices", INVERSE.bool(), ""),
        ("unsorted_indices", INVERSE[None], ""),
        ("unsorted_indices", [1, 2, 0], ""),
    ],
)
def test_packed_sequences_that_are_none(name: str, field: str, value: Any, message: str) -> None:
    if field == "batch_sizes" and isinstance(value, list):
        value = torch.tensor(value, dtype=torch.int64)
    x, sizes = torch.zeros(6, C, dtype=torch.float64), torch.tensor([3, 2, 1])
    h = torch.zeros(1, 3, H, dtype=torch.float64)
    hx = ((h, h) if name == "LSTM" else h,) if field == "sorted_indices" else ()
    for order in ((None, None), (ORDER, INVERSE)):
        packed = PackedSequence(x, sizes, *order)._replace(**{field: value})
        error: Any = RuntimeError if message else (RuntimeError, IndexError, TypeError, ValueError)
        with pytest.raises(error, match=message or None):
            pair_of(name)[1](packed, *hx)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LightGRU"])
@pytest.mark.parametrize("lengths", [[], [T, T - 1, 1], "ab", {}, 2.5, True, [None, 1], [[1], [1]]])
def test_lengths_that_are_none(name: str, lengths: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lengths"):
        pair_of(name)[1](torch.zeros(T, N, C, dtype=torch.float64), lengths=lengths)


@pytest.mark.parametrize(
    "lengths",
    [
        [2**70, 1],
        [float("nan"), 1],
        [1j, 1],
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2], dtype=torch.complex64),
        torch.tensor([[1, 2]]),
        torch.tensor([1, 2]).to_sparse(),
        torch.tensor([1, 2], device="meta"),
    ],
    ids=str,
)
def test_lengths_of_wrong_numbers(lengths: Any) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        rnnext.GRU(C, H)(torch.zeros(T, N, C), lengths=lengths)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(
    "sizes",
    [
        *((bad, H) for bad in (-1, 2.0, float("nan"), "3", None, [3], 2**50, 2**62, 2**64)),
        *((C, bad) for bad in (-1, 2.0, float("nan"), "3", None, [3], 2**50, 2**62, 2**64)),
    ],
    ids=str,
)
def test_sizes_are_refused_as_nns_are(name: str, sizes: tuple[Any, ...]) -> None:
    theirs, mine = (raised(getattr(package, name), *sizes) for package in (nn, rnnext))
    assert theirs is not None
    assert type(mine) is type(theirs)
    # Below the first line may stand where in torch it was raised.
    assert str(mine).splitlines()[0] == str(theirs).splitlines()[0]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'hidden_size'"):
        getattr(rnnext, name)(C)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": -1},
        {"num_layers": 1.0},
        {"num_layers": "1"},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"dropout": float("inf")},
        {"dropout": 1j},
        {"bias": None},
        {"batch_first": 0},
        {"dtype": torch.int64},
        {"dtype": torch.bool},
        {"dtype": "float32"},
        {"device": "nowhere"},
        {"device": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LightGRU"])
def test_options_are_refused_as_nns_are(name: str, options: dict[str, Any]) -> None:
    ours = getattr(rnnext, name, None) or ZOO[name]
    theirs, mine = (
        raised(kind, C, H, **{"num_layers": 2, **options})
        for kind in (getattr(nn, name, nn.GRU), ours)
    )
    assert theirs is not None
    assert type(mine) is type(theirs)


@pytest.mark.parametrize("function", [rnnext.swap, rnnext.unswap])
@pytest.mark.parametrize("model", [None, "model", nn.LSTM, [nn.LSTM(C, H)], 3])
def test_swap_takes_modules_alone(function: Any, model: Any) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__} expects a torch.nn.Module, but got"):
        function(model)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"noise": {"e": rnnext.Dropout(float("nan"))}}, TypeError, "p=nan"),
        ({"noise": {"e": rnnext.Dropout(1.5)}}, ValueError, "p=1.5: expected a probability"),
        ({"noise": {"e": rnnext.Bernoulli(-0.1)}}, ValueError, "p=-0.1: expected a probability"),
        ({"noise": {"e": rnnext.Bernoulli(None)}}, TypeError, "p=None: expected a finite number"),
        ({"noise": {"e": rnnext.Bernoulli("p")}}, ValueError, "p='p': there is no such constant"),
        ({"noise": {"e": rnnext.Normal(std=-1)}}, ValueError, "std=-1.0: expected at least 0"),
        ({"noise": {"e": rnnext.Normal(torch.ones(1))}}, TypeError, "mean=tensor"),
        ({"noise": {"e": rnnext.Uniform(1, 0)}}, ValueError, "low=1.0, high=0.0"),
        ({"noise": {"e": rnnext.Uniform(0, float("inf"))}}, TypeError, "high=inf"),
        ({"noise": {"e": rnnext.Uniform(size=0)}}, ValueError, "the size 0"),
        ({"noise": {"e": rnnext.Uniform(per="row")}}, ValueError, "per='row'"),
        ({"noise": {"e": 0.5}}, TypeError, "expected a kind of noise"),
        ({"params": {"e": "zeros"}}, TypeError, "begins with 'zeros'"),
        ({"params": {"e": rnnext.Param(0, size=-1)}}, ValueError, "the size -1"),
        ({"params": {"e": rnnext.Param(size="width")}}, ValueError, "the size 'width'"),
        ({"params": ["e"]}, TypeError, "expected a dictionary"),
    ],
)
def test_parts_of_a_cell(part: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        declare("CELL", lambda a, e: a * e, gates=("a",), **part)
