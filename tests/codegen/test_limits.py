"""What a cell has too much of for the engine: said where the class is defined."""

import pytest
import torch
from eager import program_of

import rnnext
from rnnext.cell import declare
from rnnext.codegen import build, emit

SQUARE = ("hidden_size", "hidden_size")
NORMED = "a = torch.nn.functional.layer_norm(a, a.shape[-1:]).tanh()"


def named(letter, count):
    return [f"{letter}{k}" for k in range(count)]


def step(arguments, *lines):
    defined = {"torch": torch}
    exec("\n    ".join([f"def step({', '.join(arguments)}):", *lines]), defined)
    return defined["step"]


def product(form, names):
    return f"return a * h * ({' * '.join(form.format(name) for name in names)})"


def cell(problem):
    """The parts of a cell that has it."""
    count = int(problem.split()[0])
    match problem.split(maxsplit=1)[1]:
        case "states" | "values kept for the backward":  # the gate, and old states
            names = named("s", count)
            line = f"return {', '.join(f'a * {name}' for name in names)}"
            return {"states": names, "step": step(["a", *names], line)}
        case "params":
            names = named("p", count)
            made = step(["a", "h", *names], product("{}", names))
            return {"params": dict.fromkeys(names), "step": made}
        case "matrices":
            names = named("m", count)
            made = step(["a", "h", *names], product("(a @ {}.T)", names))
            return {"matrices": dict.fromkeys(names, SQUARE), "step": made}
        case "products":
            made = step(["a", "h", "m"], product("((a + {}) @ m.T)", range(count)))
            return {"matrices": {"m": SQUARE}, "step": made}
        case "kinds of noise":
            names = named("n", count)
            made = step(["a", "h", *names], product("{}", names))
            return {"noise": dict.fromkeys(names, rnnext.Dropout(0.5)), "step": made}
        case "sizes besides hidden_size":
            return {"sizes": named("k", count), "step": step(["a", "h"], "return a * h")}
        case "forward stages":
            lines = [NORMED] * ((count - 1) // 3)
            return {"step": step(["a", "h"], *lines, "return a * h")}
    names = named("g", count - 1)  # and the gate of all these cells
    return {"input_gates": names, "step": step(["a", "h", *names], product("{}", names))}


def define(problem):
    type("Large", (rnnext.Recurrent,), {"gates": ["a"], **cell(problem)})


@pytest.mark.skipif(build._compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "problem",
    [
        *("17 states", "33 params", "9 matrices", "17 products", "9 kinds of noise"),
        *("8 sizes besides hidden_size", "19 forward stages"),
    ],
)
def test_too_much(problem):
    with pytest.raises(rnnext.CellError, match=f"^Large: it has {problem}, .* takes at most"):
        define(problem)


@pytest.mark.skipif(build._compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "problem",
    [
        r"11 gates \(those apart twice\), products and params",
        "10 values kept for the backward",
    ],
)
def test_too_many_values(problem, monkeypatch):
    """With a lower limit, for the test's time."""
    monkeypatch.setattr(emit, "_MOST_VALUES", int(problem.split()[0]) - 1)
    with pytest.raises(rnnext.CellError, match=f"^Large: it has {problem}.* takes at most"):
        define(problem)


def test_too_much_for_second_derivatives():
    large = declare("Large", gates=("a",), **cell("17 params"))
    assert emit.header(program_of(large, 1), "x")
    with pytest.raises(
        rnnext.CellError, match=r"Large: its second derivative has 34 params, .* 32"
    ):
        emit.header(program_of(large, 2), "x")
