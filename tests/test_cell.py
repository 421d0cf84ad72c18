"""What a declaration holds, and what is said of one that can't be."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnext
from rnnext.cell import Bernoulli, Declaration, Dropout, Noise, Normal, Param, Uniform, declare


def step(z: Tensor, h: Tensor) -> Tensor:
    return z + h


def test_a_declaration_holds_what_was_declared() -> None:
    def step(hidden_size, n_h, z, n_x, u, c, hr, b, m, leak):  # type: ignore[no-untyped-def]
        return u, c

    cell = declare(
        "CELL",
        staticmethod(step),
        gates=["z"],
        apart_gates=("n",),
        input_gates=("u",),
        states={"h": "proj", "c": 1},
        params={"b": 1},
        matrices={"hr": ("proj", "hidden_size")},
        sizes=("proj",),
        constants={"leak": 0.5, "p": 0.25},
        noise={"m": Bernoulli("p", size=1)},
        values={"leak": 1},
    )
    assert (cell.gates, cell.apart_gates, cell.input_gates) == (("z",), ("n",), ("u",))
    assert (cell.gate_count, cell.recurrent_gate_count) == (3, 2)
    assert cell.states == {"h": "proj", "c": 1}
    assert cell.params == {"b": Param(1)}
    assert cell.constants == {"leak": 1.0, "p": 0.25}
    assert type(cell.constants["leak"]) is float
    assert cell.noise == {"m": Bernoulli(0.25, size=1)}
    assert cell.step is step
    assert cell.arguments == ("hidden_size", "n_h", "z", "n_x", "u", "c", "hr", "b", "m", "leak")
    sizes = cell.size_values(6, [4])
    assert sizes == {"hidden_size": 6, "proj": 4}
    assert cell.state_widths(sizes) == [4, 1]
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "b"]
    assert cell.weight_names(True) == names
    assert cell.weight_names(False) == names[:2] + names[4:]
    shapes = [(18, 3), (12, 4), (18,), (12,), (4, 6), (6,)]
    assert cell.weight_shapes(True, 3, sizes) == shapes
    assert cell.weight_shapes(False, 3, sizes, heads=2) == [(18, 3), (12, 2), (4, 6), (6,)]


def test_step_is_called_by_name_and_gives_a_tuple() -> None:
    z, h = torch.ones(2, 3), torch.zeros(2, 3)
    cell = declare("CELL", step, gates=("z",))
    (new,) = cell.call({"h": h, "z": z, "other": 1})
    assert torch.equal(new, z)
    with pytest.raises(ValueError, match=r"CELL\.step returns 1 values, .* are h, c"):
        declare("CELL", step, gates=("z",), states=("h", "c")).call({"h": h, "z": z})


def test_declarations_are_themselves_alone() -> None:
    a, b = (declare("CELL", step, gates=("z",)) for _ in range(2))
    assert a != b
    assert len({a, b}) == 2


def test_noise_has_numbers_and_an_expectation() -> None:
    for noise, numbers, expectation in (
        (Dropout(0.25), (0.25, 0.0), 1.0),
        (Bernoulli(0.25), (0.25, 0.0), 0.25),
        (Normal(1.0, 2.0), (1.0, 2.0), 1.0),
        (Uniform(1.0, 2.0, per="sequence"), (1.0, 2.0), 1.5),
    ):
        assert (noise.a, noise.b) == numbers
        assert noise.expectation == expectation
        assert noise.size == "hidden_size"


GOOD: dict[str, Any] = {"gates": ("z",), "step": step}
WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "Bad has no step: define one in the class", {"step": None}),
    (TypeError, "Bad.step is a int: expected a plain function", {"step": 3}),
    (TypeError, "Bad.step is a classmethod: expected", {"step": classmethod(step)}),
    (TypeError, "Bad declares no gate: name at least one in gates, apart_gates", {"gates": ()}),
    (TypeError, "Bad.step takes self: step is a pure", {"step": lambda self, z, h: z}),
    (TypeError, "Bad.step takes *z: its arguments are", {"step": lambda *z: z}),
    (TypeError, "Bad.step takes **z: its arguments are", {"step": lambda **z: z}),
    (TypeError, "Bad.step takes z by position only", {"step": lambda z, /: z}),
    (
        TypeError,
        "Bad.step gives leak a default: leave it out, and declare constants = {'leak': 0.1}",
        {"step": lambda z, leak=0.1: z},
    ),
    (
        TypeError,
        "Bad.step takes w, which is not declared: it can take z, h, hidden_size",
        {"step": lambda z, w: z},
    ),
    (
        TypeError,
        "Bad.step takes n, an apart gate: take its parts, n_x and n_h, or name it in gates",
        {"apart_gates": ("n",), "step": lambda z, n: z},
    ),
    (TypeError, "Bad.step does not take f, which is declared: use it", {"gates": ("z", "f")}),
    (
        TypeError,
        "Bad.step does not take n_h, which is declared",
        {"apart_gates": ("n",), "step": lambda z, n_x: z},
    ),
    (TypeError, "Bad.step does not take u,", {"input_gates": ("u",)}),
    (TypeError, "Bad.step does not take p,", {"params": {"p": 1.0}}),
    (TypeError, "Bad.step does not take w,", {"matrices": {"w": ("hidden_size", "hidden_size")}}),
    (TypeError, "Bad.step does not take m,", {"noise": {"m": Dropout(0.5)}}),
    (
        TypeError,
        "Bad.gates is the string 'z': expected a tuple of names; write (\"z\",)",
        {"gates": "z"},
    ),
    (TypeError, "Bad.states is the string 'h'", {"states": "h"}),
    (TypeError, "Bad.sizes is the string 'size'", {"sizes": "size"}),
    (TypeError, "Bad.gates is 4: expected a tuple of names (strings)", {"gates": 4}),
    (TypeError, "Bad.gates is (4,): expected a tuple of names", {"gates": (4,)}),
    (ValueError, "Bad.gates names 'z' twice: rename one", {"gates": ("z", "z")}),
    (TypeError, "Bad.states is empty: expected at least h", {"states": ()}),
    (TypeError, "Bad.params is ('p',): expected a dictionary with names", {"params": ("p",)}),
    (TypeError, "Bad.params is {1: 2}: expected a dictionary", {"params": {1: 2}}),
    (ValueError, "Bad.gates: 'a b' is no name that step could have", {"gates": ("a b",)}),
    (ValueError, "Bad.constants: 'lambda' is no name that", {"constants": {"lambda": 1.0}}),
    (
        ValueError,
        "Bad.constants: the name 'bias' is taken, by an argument of every layer",
        {"constants": {"bias": 1.0}},
    ),
    (ValueError, "Bad.sizes: the name 'hidden_size' is taken", {"sizes": ("hidden_size",)}),
    (ValueError, "Bad.gates: the name 'self' is taken", {"gates": ("self",)}),
    (
        ValueError,
        "Bad.constants: 'float' is an attribute of the class already; choose another name",
        {"constants": {"float": 1.0}},
    ),
    (ValueError, "Bad.sizes: 'gates' is an attribute of the class", {"sizes": ("gates",)}),
    (
        ValueError,
        "Bad declares 'z' twice, in gates and states: step could not tell them apart; rename one",
        {"states": ("h", "z")},
    ),
    (
        ValueError,
        "Bad declares 'n_x' twice, in gates and apart_gates (part of n)",
        {"gates": ("z", "n_x"), "apart_gates": ("n",)},
    ),
    (
        ValueError,
        "Bad.matrices: 'hh' would be stored as weight_hh_l0, which is a weight already",
        {"matrices": {"hh": ("hidden_size", "hidden_size")}},
    ),
    (
        ValueError,
        "Bad.matrices: 'u' would be stored as weight_u_l0, which is one of params already",
        {"params": {"weight_u": 1.0}, "matrices": {"u": ("hidden_size", "hidden_size")}},
    ),
    (ValueError, "Bad.params: 'bias_ih' would be stored as bias_ih_l0", {"params": {"bias_ih": 1}}),
    (
        ValueError,
        "Bad.states['h'] has the size 'proj': expected hidden_size, proj_size or the number 1",
        {"states": {"h": "proj"}, "sizes": ("proj_size",)},
    ),
    (ValueError, "Bad.states['h'] has the size 2: expected hidden_size or", {"states": {"h": 2}}),
    (ValueError, "Bad.states['h'] has the size True", {"states": {"h": True}}),
    (ValueError, "Bad.params['p'] has the size 'q'", {"params": {"p": Param(size="q")}}),
    (
        TypeError,
        "Bad.params['p'] begins with 'one': expected a number, a",
        {"params": {"p": "one"}},
    ),
    (
        TypeError,
        "Bad.matrices['w'] is 'hidden_size': expected two sizes (out, in)",
        {"matrices": {"w": "hidden_size"}},
    ),
    (ValueError, "Bad.matrices['w'] has the size 3", {"matrices": {"w": ("hidden_size", 3)}}),
    (
        TypeError,
        "Bad.constants['k'] is [1]: expected a float, int, bool",
        {"constants": {"k": [1]}},
    ),
    (
        TypeError,
        "Bad.noise['m'] is 0.5: expected a kind of noise with its numbers, such as rnnext.Dropout",
        {"noise": {"m": 0.5}},
    ),
    (TypeError, "Bad.noise['m'] is <class", {"noise": {"m": Dropout}}),
    (TypeError, "Bad.noise['m'] is Noise(", {"noise": {"m": Noise()}}),
    (
        ValueError,
        "Bad.noise['m']: p='rate': there is no such constant, expected a number or one of k",
        {"noise": {"m": Dropout("rate")}, "constants": {"k": 1.0}},
    ),
    (
        TypeError,
        "Bad.noise['m']: p=True: expected a finite number",
        {"noise": {"m": Dropout("k")}, "constants": {"k": True}},
    ),
    (
        ValueError,
        "Bad.noise['m']: p=1.5: expected a probability, 0 to 1",
        {"noise": {"m": Dropout(1.5)}},
    ),
    (ValueError, "Bad.noise['m']: p=-0.5: expected", {"noise": {"m": Bernoulli(-0.5)}}),
    (ValueError, "Bad.noise['m']: std=-1.0: expected", {"noise": {"m": Normal(0.0, -1.0)}}),
    (
        ValueError,
        "Bad.noise['m']: low=2.0, high=1.0: expected",
        {"noise": {"m": Uniform(2.0, 1.0)}},
    ),
    (TypeError, "Bad.noise['m']: mean=nan: expected", {"noise": {"m": Normal(float("nan"))}}),
    (
        ValueError,
        "Bad.noise['m'] has per='row': expected 'step' or 'sequence'",
        {"noise": {"m": Dropout(0.5, per="row")}},
    ),
    (ValueError, "Bad.noise['m'] has the size 'q'", {"noise": {"m": Dropout(0.5, size="q")}}),
]


@pytest.mark.parametrize(("error", "message", "parts"), WRONG, ids=[w[1][:40] for w in WRONG])
def test_a_wrong_class_raises_where_it_is_defined(
    error: type[Exception], message: str, parts: dict[str, Any]
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        type("Bad", (rnnext.Recurrent,), {**GOOD, **parts})


def test_a_class_declares_the_same() -> None:
    class Cell(rnnext.Recurrent):
        gates = ("z",)
        constants = {"leak": 0.1}  # noqa: RUF012

        def step(z, h, leak):  # type: ignore[no-untyped-def]
            return leak * z + h

    cell = Cell(2, 3, leak=0.2).declaration
    assert isinstance(cell, Declaration)
    assert cell.name == "Cell"
    assert cell.constants == {"leak": 0.2}
    assert Cell(2, 3, leak=0.2).declaration is cell
    assert Cell(2, 3).declaration is Cell(4, 5, leak=0.1).declaration
    assert torch.equal(Cell.step(torch.ones(1), torch.ones(1), 2), torch.full((1,), 3.0))
