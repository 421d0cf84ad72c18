"""What lowered steps compute, and their derivatives, against torch."""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from eager import Case, program_of, random

import rnnext
from rnnext.cell import Param, declare
from rnnext.codegen.ir import ELEMENTWISE, LEAVES, walk

LEAK = torch.tensor(0.25)
BOTH = pytest.mark.parametrize("streams", [1, 2])


def lstm(i, f, g, o, h, c):
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(r, z, n_x, n_h, h):
    r, z = r.sigmoid(), z.sigmoid()
    return torch.lerp(torch.tanh(n_x + r * n_h), h, z)


def mgu(f, u, h, uh):
    f = f.sigmoid()
    return (1 - f) * h + f * torch.tanh(u + F.linear(f * h, uh))


def lstmp(i, f, g, o, h, c, hr):
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return (o.sigmoid() * c.tanh()) @ hr.T, c


def products_of_states(a, h, c, p, q):
    made = torch.matmul(c, p.transpose(0, 1)) + torch.mm(h, q.t())
    c = torch.tanh(F.linear(h.sin(), weight=q, bias=c) * made)
    return torch.tanh(a + c @ p.mT) * (h @ p.T), c


def indrnn(u, h, w, b):
    return torch.relu(u + w * h + b.exp() * w.mean())


def peephole(i, g, h, c, p):
    i = torch.sigmoid(i + p * c)
    c = (1 - i) * c + i * g.tanh()
    return c.tanh(), c


def normed(i, g, h, c, scale, shift, hidden_size):
    i = torch.sigmoid(F.layer_norm(i, (hidden_size,), scale, shift))
    c = i * c + (1 - i) * F.rms_norm(g, (hidden_size,), scale, eps=1e-5)
    return torch.tanh(c / torch.std(c, dim=-1, keepdim=True)) * hidden_size**-0.5, c


def normed_by_hand(i, g, h, c, scale, shift, hidden_size):
    """The same; torch's layer_norm is not right in its second derivative's gradient."""
    centred = i - i.mean(-1, keepdim=True)
    var = (centred * centred).mean(-1, keepdim=True)
    i = torch.sigmoid(centred / torch.sqrt(var + 1e-5) * scale + shift)
    c = i * c + (1 - i) * g / torch.sqrt((g * g).mean(-1, keepdim=True) + 1e-5) * scale
    return torch.tanh(c / torch.std(c, dim=-1, keepdim=True)) * hidden_size**-0.5, c


def slstm(i, f, z, o, h, c, n, m):
    f = F.logsigmoid(f) + m
    new = torch.maximum(f, i)
    i, f = torch.exp(i - new), torch.exp(f - new)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * c / n, c, n, new


def zoneout(a, h, mask):
    return mask * h + (1 - mask) * a.tanh()


def one_value_a_row(a, h, m):
    high = 0.5 * m + a.mean(-1)[:, None]
    mean, scale = a.mean(-1), torch.linalg.vector_norm(h, dim=1, keepdim=True)
    out = torch.tanh(a + high) * m[:, 0].unsqueeze(-1) / scale
    return out + high.expand_as(h) + mean.unsqueeze(1), torch.maximum(high, m)


def of_constants(a, h, leak, kind, layers):
    for _ in range(layers):
        a = a.tanh() if kind == "tanh" else a.relu()
    return helper(a, leak) * h + LEAK * h.detach() ** 2


def helper(a, leak):
    return torch.where((a > 0) & ~(a >= 1), a, leak * a) if leak else a


def detached(a, h, c, m, p):
    """Products to whose operands no gradient flows: of states, of noise and of nothing."""
    made = F.linear(h.detach(), p) + F.linear(c.data, p) + F.linear(m, p) + F.linear(c, p)
    return torch.tanh(a * made + h), made * F.linear(torch.ones_like(h), p).sin() + c


H = "hidden_size"
IH = {"gates": ("i", "g"), "states": ("h", "c")}
NORMS = {**IH, "params": {"scale": 1.0, "shift": 0.0}}
CELLS = {
    "lstm": declare("LSTM", lstm, gates=("i", "f", "g", "o"), states=("h", "c")),
    "gru": declare("GRU", gru, gates=("r", "z"), apart_gates=("n",)),
    "mgu": declare("MGU", mgu, gates=("f",), input_gates=("u",), matrices={"uh": (H, H)}),
    "lstmp": declare(
        "LSTMP",
        lstmp,
        gates=("i", "f", "g", "o"),
        states={"h": "proj", "c": H},
        sizes=("proj",),
        matrices={"hr": ("proj", H)},
    ),
    "products": declare(
        "Products",
        products_of_states,
        gates=("a",),
        states=("h", "c"),
        matrices={"p": (H, H), "q": (H, H)},
    ),
    "detached": declare(
        "Detached",
        detached,
        gates=("a",),
        states=("h", "c"),
        noise={"m": rnnext.Bernoulli(0.3)},
        matrices={"p": (H, H)},
    ),
    "indrnn": declare("IndRNN", indrnn, input_gates=("u",), params={"w": None, "b": Param(0.0)}),
    "peephole": declare("Peephole", peephole, **IH, params={"p": None}),
    "normed": declare("Normed", normed, **NORMS),
    "slstm": declare("SLSTM", slstm, gates=("i", "f", "z", "o"), states=("h", "c", "n", "m")),
    "zoneout": declare("Zoneout", zoneout, gates=("a",), noise={"mask": rnnext.Bernoulli(0.3)}),
    "one": declare("One", one_value_a_row, gates=("a",), states={"h": H, "m": 1}),
    "constants": declare(
        "Constants",
        of_constants,
        gates=("a",),
        constants={"leak": 0.1, "kind": "tanh", "layers": 2},
    ),
}


@BOTH
@pytest.mark.parametrize("name", CELLS)
def test_cell(name, streams):
    case = Case(CELLS[name], streams)
    if name == "normed" and streams == 2:
        case.cell = declare("Normed", normed_by_hand, **NORMS)
    case.check()


FUNCTIONS = {
    **{
        name: getattr(torch, name)
        for name in [
            *("neg", "abs", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "log2", "log10"),
            *("exp2", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sigmoid", "erf", "relu"),
            *("floor", "ceil", "trunc", "round", "frac", "sign", "sgn", "square", "reciprocal"),
            *("isnan", "isinf", "isfinite", "logical_not", "sinc", "deg2rad"),
        ]
    },
    **{
        name: getattr(F, name)
        for name in [
            *("silu", "mish", "gelu", "softplus", "elu", "selu", "celu", "leaky_relu", "relu6"),
            *("logsigmoid", "hardtanh", "hardswish", "softsign", "tanhshrink", "hardshrink"),
            *("softshrink",),
        ]
    },
    **{f"pow {e}": lambda a, e=e: a**e for e in (0, 1, 2, 3, 4, 5, -1, -2, 0.5, -0.5, 1.5)},
    "gelu tanh": lambda a: F.gelu(a, approximate="tanh"),
    "threshold": lambda a: F.threshold(a, 0.5, -1.0),
    "nan_to_num": lambda a: a.log().nan_to_num(0.5, 2.0, -3.0) - (1 / a).nan_to_num(None, 2.0, 4.0),
    "clamp": lambda a: a.clamp(-1, 1),
    "clip": lambda a: torch.clip(a, max=1.0),
    "rsub": lambda a: 1 - a,
    "rdiv": lambda a: 1 / a,
    "rpow": lambda a: 2**a,
    "where": lambda a: torch.where(a > 0, a, 0.0),
    "casts": lambda a: a.int() * a + a.long() + a.double() + (a > 0).float() + a.bool() * a,
    "fills": lambda a: a + torch.zeros_like(a) + torch.ones(a.shape) * a.new_full(a.size(), 2.0),
    "booleans": lambda a: torch.where(((a > 0) == (a < 1)) | (a > 2) ^ (a != 3), a, 2 * a),
    "detach": lambda a: a.detach() * a + a.data,
    "size": lambda a: a * a.shape[-1] ** -0.5 + a / a.size(1),
    "sum": lambda a: a / (1 + a.abs().sum(-1, keepdim=True)),
    "sum of a row's value": lambda a: a * a.sum(1, keepdim=True).expand_as(a).sum(-1)[:, None],
    "var": lambda a: a * a.var(-1, keepdim=True) + torch.var(a, 1, correction=0)[:, None],
    "norms": lambda a: a / a.norm(dim=-1, keepdim=True) + F.normalize(a, dim=1),
    "softmax": lambda a: a.exp() / a.exp().sum(-1, keepdim=True),
    "shapes": lambda a: a.view(a.shape)[:, None].squeeze(1)[..., :] + a.flatten(1).clone(),
    "no dropout": lambda a: F.dropout(a, 0.5, training=False),
}
BINARY = {
    **{
        name: getattr(torch, name)
        for name in [
            *("add", "sub", "mul", "div", "maximum", "minimum", "pow", "logaddexp", "xlogy"),
            *("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_xor"),
        ]
    },
    "alpha": lambda a, b: torch.add(a, b, alpha=2) - torch.sub(a, b, alpha=0.1),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3) + torch.lerp(a, b, b),
    "addcmul": lambda a, b: torch.addcmul(a, b, b, value=2),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.5),
    "clamp of tensors": lambda a, b: torch.clamp(a, -b.abs(), b.abs()),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 3.0),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "huber": lambda a, b: F.huber_loss(a, b, reduction="none"),
}
KINKS = torch.tensor([0.0, 1, -1, 3, -3, 0.5, -0.5, 2.2, -0.7, 0.25], dtype=torch.float64)


def kinks(*shape):
    return KINKS[torch.randint(len(KINKS), shape)]


def positive(*shape):
    return random(*shape).abs() + 0.1


def together(functions, arguments):
    """A cell with a gate for each argument of each function, and a state of what it makes."""
    letters, names = "ab"[:arguments], [re.sub(r"\W", "_", name) for name in functions]

    def step(**given):
        of_each = [[given[f"{letter}_{name}"] for letter in letters] for name in names]
        made = [f(*arguments) for f, arguments in zip(functions.values(), of_each, strict=True)]
        return tuple(new if new.is_floating_point() else new * 1.5 for new in made)

    gates = tuple(f"{letter}_{name}" for name in names for letter in letters)
    parameters = [inspect.Parameter(gate, inspect.Parameter.KEYWORD_ONLY) for gate in gates]
    step.__signature__ = inspect.Signature(parameters)
    return declare("Functions", step, gates=gates, states=tuple(f"s_{name}" for name in names))


def in_groups(functions, arguments, size=12):
    """Cells of a few functions each: one takes hardly longer to lower than a function alone."""
    items = list(functions.items())
    groups = [dict(items[start : start + size]) for start in range(0, len(items), size)]
    return [
        pytest.param(together(group, arguments), id=f"{next(iter(group))}, ...") for group in groups
    ]


FLAT = frozenset(  # without a derivative, or with that of a product
    {
        *("floor", "ceil", "trunc", "round", "sign", "sgn", "isnan", "isinf", "isfinite", "neg"),
        *("lt", "le", "gt", "ge", "eq", "ne", "logical_not", "logical_and", "logical_or", "rsub"),
        *("logical_xor", "add", "sub", "alpha", "casts", "fills", "no dropout", "div trunc"),
    }
)


def curved(functions):
    return {name: function for name, function in functions.items() if name not in FLAT}


@pytest.mark.parametrize("cell", [*in_groups(FUNCTIONS, 1), *in_groups(BINARY, 2)])
def test_functions(cell):
    """At points where a derivative jumps as well, and where there is none (NaN and infinities)."""
    for values in (random, positive, kinks):
        Case(cell, values=values).check()


@pytest.mark.parametrize("cell", [*in_groups(curved(FUNCTIONS), 1), *in_groups(curved(BINARY), 2)])
def test_functions_with_tangents(cell):
    """Away from the points where derivatives jump: torch's own modes differ there."""
    for values in (random, positive):
        Case(cell, 2, values).check(1e-10)


@BOTH
@pytest.mark.parametrize("name", CELLS)
def test_program(name, streams):
    """Only the operations that the code generator has, and sources of the forward's."""
    program = program_of(CELLS[name], streams)
    nodes = list(walk(program.results()))
    assert {node.op for node in nodes} <= {*ELEMENTWISE, *LEAVES, "product", "sum", "detach"}
    assert len({(n.op, n.args, n.index, n.value, n.boolean) for n in nodes}) == len(nodes)
    for node in walk(program.next[: len(CELLS[name].states)]):
        if node.op not in {*LEAVES, "product", "detach"}:
            assert re.fullmatch(r"test_trace\.py:\d+: \S.*", node.source), node
    gates = CELLS[name].gate_count * streams
    assert sorted({*program.da, *program.dx}) == list(range(gates))
    assert len(program.dstate) == len(program.next) == streams * len(CELLS[name].states)


def test_an_lstm_is_short():
    nodes = [n for n in walk(program_of(CELLS["lstm"], 1).results()) if n.op not in LEAVES]
    assert len(nodes) <= 32


def test_sizes_stay_symbols():
    cell = declare("Mean", lambda a, h: a - h.mean(-1, keepdim=True), gates=("a",))
    constants = {n.value for n in walk(program_of(cell, 1).results()) if n.op == "constant"}
    assert not constants & {3.0, 7.0, 1 / 3, 1 / 7}


def test_no_derivative():
    cell = declare("Half", lambda a, h: a // 2 + h, gates=("a",))
    with pytest.raises(rnnext.codegen.errors.CellError, match=r"Half: .* no derivative .*detach"):
        program_of(cell, 1)
