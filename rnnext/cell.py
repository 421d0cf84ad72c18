"""What a cell declares: the names its step takes, their widths, and how they begin.

A cell is a pure function, `step`, of one time step for all rows. Its arguments are found by name
among what is declared beside it; `Declaration` holds the whole, checked. `rnnext.Recurrent` makes
one of a class, `rnnext.reference.CELLS` has those that are built in.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from rnnext import checks
from rnnext.noise import (
    Bernoulli,
    Constant,
    Dropout,
    Noise,
    Normal,
    Size,
    Uniform,
    is_number,
    listed,
)

__all__ = ["Bernoulli", "Declaration", "Dropout", "Noise", "Normal", "Param", "Uniform", "declare"]

BATCH_MEAN = "batch_mean"
"""The argument of a step that is the function for means over the batch."""

STATES = ".states"
"""What the op has after the name of a cell where the sequences of its states are wanted."""

Init: TypeAlias = float | Callable[[Tensor], object] | None


@dataclass(frozen=True)
class Param:
    """A learnt vector of a cell: one value for each unit.

    Args:
        init: the value it begins with; a function that fills a tensor in place, as those of
            torch.nn.init; None: U(-1/sqrt(H), 1/sqrt(H)), as the matrices.
        size: its width.

    Example:
        >>> Param(1.0)
        Param(init=1.0, size='hidden_size')
    """

    init: Init = None
    size: Size = "hidden_size"


@dataclass(frozen=True, eq=False)
class Declaration:
    """A cell: what its step takes, by name, and the step. `declare` makes and checks it.

    H is hidden_size. The order of everything is that of the declaration.

    Attributes:
        name: of the cell.
        gates: W_ih x + b_ih + W_hh h + b_hh, each [N, H]; step takes `f` for the gate f.
        apart_gates: the same with both parts apart: step takes `f_x` (input) and `f_h`.
        input_gates: W_ih x + b_ih alone.
        states: widths by name; the first is h, the output and what W_hh multiplies.
        params: learnt vectors.
        matrices: sizes (out, in) of the matrices besides W_ih and W_hh.
        sizes: names of the sizes besides hidden_size.
        constants: values, fixed for a layer.
        noise: random values, their numbers resolved.
        step: the function: new states, in order, of its arguments.
        arguments: what step takes.
        batch_sums: widths of the sums over the batch that step makes, by `BATCH_MEAN`.
    """

    name: str
    gates: tuple[str, ...]
    apart_gates: tuple[str, ...]
    input_gates: tuple[str, ...]
    states: dict[str, Size]
    params: dict[str, Param]
    matrices: dict[str, tuple[Size, Size]]
    sizes: tuple[str, ...]
    constants: dict[str, Constant]
    noise: dict[str, Noise]
    step: Callable[..., Any]
    arguments: tuple[str, ...]
    batch_sums: tuple[Size, ...] = ()

    @property
    def gate_count(self) -> int:
        """G: W_ih has G*H rows."""
        return self.recurrent_gate_count + len(self.input_gates)

    @property
    def recurrent_gate_count(self) -> int:
        """R: W_hh has R*H rows."""
        return len(self.gates) + len(self.apart_gates)

    def call(
        self, values: Mapping[str, object], batch_mean: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """The new states: step with the arguments it names out of `values`; always a tuple.

        Args:
            values: of everything that step takes.
            batch_mean: in place of the mean over the batch.
        """
        more = {BATCH_MEAN: batch_mean} if batch_mean else {}
        result = self.step(**{name: values[name] for name in self.arguments}, **more)
        states = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if len(states) != len(self.states):
            raise ValueError(
                f"{self.name}.step returns {len(states)} values, but the states are "
                f"{listed(self.states)}: return the new states, in this order"
            )
        return states

    def size_values(self, hidden_size: int, sizes: Collection[int]) -> dict[str, int]:
        """Every size by name, of hidden_size and the values of `sizes` in order."""
        return dict(zip(("hidden_size", *self.sizes), (hidden_size, *sizes), strict=True))

    def state_widths(self, sizes: Mapping[str, int]) -> list[int]:
        """The width of each state, where `sizes` has every size's value."""
        return [width_of(size, sizes) for size in self.states.values()]

    def weight_names(self, bias: bool) -> list[str]:
        """Names of the weights of one layer and direction, in the order of the op."""
        recurrent = self.recurrent_gate_count > 0
        names = ["weight_ih", *["weight_hh"] * recurrent]
        if bias:
            names += ["bias_ih", *["bias_hh"] * recurrent]
        names += [*(f"weight_{name}" for name in self.matrices), *self.params]
        return [*names, *["batch_sums"] * bool(self.batch_sums)]

    def weight_shapes(
        self, bias: bool, inputs: int, sizes: Mapping[str, int], heads: int = 1
    ) -> list[tuple[int, ...]]:
        """Their shapes, where `sizes` has every size's value and `inputs` is the input's width."""
        hidden = sizes["hidden_size"]
        rows, recurrent_rows = self.gate_count * hidden, self.recurrent_gate_count * hidden
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_hh": (recurrent_rows, self.state_widths(sizes)[0] // heads),
            "bias_ih": (rows,),
            "bias_hh": (recurrent_rows,),
        }
        for name, (to, of) in self.matrices.items():
            shapes[f"weight_{name}"] = (width_of(to, sizes), width_of(of, sizes))
        for name, param in self.params.items():
            shapes[name] = (width_of(param.size, sizes),)
        shapes["batch_sums"] = (0, sum(width_of(size, sizes) for size in self.batch_sums))
        return [shapes[name] for name in self.weight_names(bias)]


def _mean_over_rows(values: Tensor) -> Tensor:
    return values.mean(0, keepdim=True)


def width_of(size: Size, sizes: Mapping[str, int]) -> int:
    """The number that a size stands for, where `sizes` has every size's value."""
    return size if isinstance(size, int) else sizes[size]


def split_name(name: str) -> tuple[str, bool]:
    """A cell's name as the op takes it: without what follows, and whether sequences are wanted."""
    return name.removesuffix(STATES), name.endswith(STATES)


PARTS = (
    *("gates", "apart_gates", "input_gates", "states", "params", "matrices", "sizes"),
    *("constants", "noise"),
)
"""What a cell declares besides its step."""


def declare(
    name: str,
    step: Any,
    *,
    gates: Any = (),
    apart_gates: Any = (),
    input_gates: Any = (),
    states: Any = ("h",),
    params: Any = None,
    matrices: Any = None,
    sizes: Any = (),
    constants: Any = None,
    noise: Any = None,
    values: Mapping[str, Constant] | None = None,
    attributes: Collection[str] = (),
    batch_sums: Collection[Size] = (),
) -> Declaration:
    """Check a cell's parts and make its declaration.

    Args:
        name: of the cell, for errors.
        step: a function, or a staticmethod of one.
        gates, apart_gates, input_gates, states, params, matrices, sizes, constants, noise: as
            `rnnext.Recurrent` describes them.
        values: of constants, instead of the declared ones.
        attributes: names that no constant or size may have, since a layer stores these beside.
        batch_sums: widths of the values whose mean over the batch step takes, in this order, with
            a function that is its last argument, `batch_mean`: [N, width] -> [1, width]. The op's
            last weights then are these sums, where they are given, and so are its last outputs.

    Raises:
        TypeError: a part of a wrong type; a step that takes or leaves out what it must not.
        ValueError: a name or a number that can't be.

    Example:
        >>> cell = declare("LEAKY", lambda a, h: 0.9 * h + 0.1 * a.tanh(), gates=("a",))
        >>> cell.arguments, cell.weight_names(bias=True)
        (('a', 'h'), ['weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'])
    """
    step = checks.checked_step(name, step)
    arguments = tuple(inspect.signature(step).parameters)
    if batch_sums:
        step = functools.wraps(step)(functools.partial(step, **{BATCH_MEAN: _mean_over_rows}))
        arguments = tuple(argument for argument in arguments if argument != BATCH_MEAN)
    gates = checks.names(f"{name}.gates", gates)
    apart_gates = checks.names(f"{name}.apart_gates", apart_gates)
    input_gates = checks.names(f"{name}.input_gates", input_gates)
    if not gates + apart_gates + input_gates:
        raise TypeError(
            f"{name} declares no gate: name at least one in gates, apart_gates or input_gates, "
            'such as gates = ("z",)'
        )
    sizes = checks.names(f"{name}.sizes", sizes)
    if not isinstance(states, Mapping):
        states = dict.fromkeys(checks.names(f"{name}.states", states), "hidden_size")
    states = checks.mapping(f"{name}.states", states)
    if not states:
        raise TypeError(f'{name}.states is empty: expected at least h, as states = ("h",)')
    params = checks.mapping(f"{name}.params", params)
    matrices = checks.mapping(f"{name}.matrices", matrices)
    constants = checks.mapping(f"{name}.constants", constants)
    noise = checks.mapping(f"{name}.noise", noise)
    groups = {
        "gates": gates,
        "apart_gates": apart_gates,
        "input_gates": input_gates,
        "states": states,
        "params": params,
        "matrices": matrices,
        "sizes": sizes,
        "constants": constants,
        "noise": noise,
    }
    checks.check_names(name, groups, attributes)
    checks.check_constants(name, constants)
    constants = {**constants, **checks.checked_values(name, constants, values or {})}
    declaration = Declaration(
        name,
        gates,
        apart_gates,
        input_gates,
        {k: checks.size(f"{name}.states[{k!r}]", size, sizes) for k, size in states.items()},
        {k: _param(f"{name}.params[{k!r}]", value, sizes) for k, value in params.items()},
        {k: _matrix(f"{name}.matrices[{k!r}]", value, sizes) for k, value in matrices.items()},
        sizes,
        constants,
        {k: _noise(f"{name}.noise[{k!r}]", n, constants, sizes) for k, n in noise.items()},
        step,
        arguments,
        tuple(batch_sums),
    )
    _check_arguments(declaration)
    return declaration


def without_noise(cell: Declaration, unused: Collection[str]) -> Declaration:
    """The cell without some of its noise, of which its step makes no use: it is not drawn then."""
    values = {name: cell.noise[name].expectation for name in unused}
    return replace(
        cell,
        noise={name: noise for name, noise in cell.noise.items() if name not in values},
        step=functools.wraps(cell.step)(functools.partial(cell.step, **values)),
        arguments=tuple(name for name in cell.arguments if name not in values),
    )


def _param(where: str, value: Any, sizes: Collection[str]) -> Param:
    param = value if isinstance(value, Param) else Param(value)
    if not (param.init is None or is_number(param.init) or callable(param.init)):
        raise TypeError(
            f"{where} begins with {param.init!r}: expected a number, a function that fills a "
            "tensor in place, or None"
        )
    checks.size(where, param.size, sizes)
    return param


def _matrix(where: str, value: Any, sizes: Collection[str]) -> tuple[Size, Size]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f'{where} is {value!r}: expected two sizes (out, in), such as ("hidden_size", '
            '"hidden_size")'
        )
    return checks.size(where, value[0], sizes), checks.size(where, value[1], sizes)


def _noise(
    where: str, value: Any, constants: Mapping[str, Constant], sizes: Collection[str]
) -> Noise:
    if not isinstance(value, Noise) or not value.arguments():
        raise TypeError(
            f"{where} is {value!r}: expected a kind of noise with its numbers, such as "
            "rnnext.Dropout(0.1)"
        )
    checks.size(where, value.size, sizes)
    if value.per not in ("step", "sequence"):
        raise ValueError(f"{where} has per={value.per!r}: expected 'step' or 'sequence'")
    try:
        return value.resolve(constants)
    except (TypeError, ValueError) as e:
        raise type(e)(f"{where}: {e}") from e


def _check_arguments(cell: Declaration) -> None:
    """Step takes what is declared, and every gate, param, matrix and noise of it."""
    apart = [f"{name}_{part}" for name in cell.apart_gates for part in "xh"]
    used = [*cell.gates, *apart, *cell.input_gates, *cell.params, *cell.matrices, *cell.noise]
    free = [*cell.states, *cell.constants, *cell.sizes, "hidden_size"]
    for name in cell.arguments:
        if name in cell.apart_gates:
            raise TypeError(
                f"{cell.name}.step takes {name}, an apart gate: take its parts, {name}_x and "
                f"{name}_h, or name it in gates to have their sum"
            )
        if name not in used and name not in free:
            raise TypeError(
                f"{cell.name}.step takes {name}, which is not declared: it can take "
                f"{listed([*used, *free])}"
            )
    for name in used:
        if name not in cell.arguments:
            raise TypeError(
                f"{cell.name}.step does not take {name}, which is declared: use it or remove it"
            )
