"""What can be checked of a cell's declaration before there is one: types, names and sizes.

Each check says what was given and what was expected; `name` is the cell's, `where` the part's.
"""

import inspect
import keyword
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from rnnext.noise import Constant, Size, is_number, listed

# Names that would be taken for another thing: arguments of every layer, and methods of it.
_RESERVED = (
    *("self", "step", "forward", "training", "input_size", "hidden_size", "num_layers", "bias"),
    *("batch_first", "dropout", "bidirectional", "heads", "checkpoint_every", "device", "dtype"),
)


def checked_step(name: str, step: Any) -> Callable[..., Any]:
    """The function, out of a staticmethod if it is one, if its signature can be called by name."""
    if step is None:
        raise TypeError(
            f"{name} has no step: define one in the class, a function that takes by name what is "
            "declared and returns the new states, such as def step(z, n, h)"
        )
    step = step.__func__ if isinstance(step, staticmethod) else step
    if not inspect.isfunction(step):
        raise TypeError(f"{name}.step is a {type(step).__name__}: expected a plain function")
    for argument in inspect.signature(step).parameters.values():
        if argument.name == "self":
            raise TypeError(
                f"{name}.step takes self: step is a pure function, without self; take what it "
                "needs by name, after declaring it (numbers: constants, weights: params)"
            )
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise TypeError(
                f"{name}.step takes {argument}: its arguments are found by name; name each"
            )
        if argument.kind is argument.POSITIONAL_ONLY:
            raise TypeError(
                f"{name}.step takes {argument.name} by position only: its arguments are found by "
                "name; leave out the /"
            )
        if argument.default is not argument.empty:
            default = argument.default
            raise TypeError(
                f"{name}.step gives {argument.name} a default: leave it out, and declare "
                f"constants = {{{argument.name!r}: {default!r}}} if it is a number to set"
            )
    return step


def names(where: str, value: Any) -> tuple[str, ...]:
    """Names, each once, in a tuple."""
    if isinstance(value, str):
        raise TypeError(
            f'{where} is the string {value!r}: expected a tuple of names; write ("{value}",)'
        )
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{where} is {value!r}: expected a tuple of names (strings)")
    twice = next((v for v in value if value.count(v) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} names {twice!r} twice: rename one")
    return tuple(value)


def mapping(where: str, value: Any) -> dict[str, Any]:
    """A dictionary with names for keys; of None an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TypeError(f"{where} is {value!r}: expected a dictionary with names for keys")
    return dict(value)


def check_names(
    name: str, groups: Mapping[str, Iterable[str]], attributes: Collection[str]
) -> None:
    """Refuse names that are no identifiers, and any that would stand for two things."""
    meanings: dict[str, list[str]] = {}
    stored = {
        f"{kind}_{which}": "a weight" for kind in ("weight", "bias") for which in ("ih", "hh")
    }
    for group, names in groups.items():
        for declared in names:
            if not declared.isidentifier() or keyword.iskeyword(declared):
                raise ValueError(
                    f"{name}.{group}: {declared!r} is no name that step could have for an argument"
                )
            if declared in _RESERVED:
                raise ValueError(
                    f"{name}.{group}: the name {declared!r} is taken, by an argument of every "
                    "layer or of step; choose another"
                )
            if group in ("sizes", "constants") and declared in attributes:
                raise ValueError(
                    f"{name}.{group}: {declared!r} is an attribute of the class already; "
                    "choose another name"
                )
            meanings.setdefault(declared, []).append(group)
            if group == "apart_gates":
                for part in (f"{declared}_x", f"{declared}_h"):
                    meanings.setdefault(part, []).append(f"{group} (part of {declared})")
            if group in ("matrices", "params"):
                weight = f"weight_{declared}" if group == "matrices" else declared
                if weight in stored:
                    raise ValueError(
                        f"{name}.{group}: {declared!r} would be stored as {weight}_l0, which is "
                        f"{stored[weight]} already; choose another name"
                    )
                stored[weight] = f"one of {group}"
    for declared, places in meanings.items():
        if len(places) > 1:
            raise ValueError(
                f"{name} declares {declared!r} twice, in {' and '.join(places)}: step could not "
                "tell them apart; rename one"
            )


def check_constants(name: str, constants: Mapping[str, Any]) -> None:
    """Refuse constants that are no plain Python values."""
    for key, value in constants.items():
        if not isinstance(value, (float, int, bool, str)):
            raise TypeError(
                f"{name}.constants[{key!r}] is {value!r}: expected a float, int, bool or str"
            )


def checked_values(
    name: str, constants: Mapping[str, Constant], values: Mapping[str, Any]
) -> dict[str, Constant]:
    """Values given for constants: each of the type of its default, or an int for a float."""
    checked: dict[str, Constant] = {}
    for key, value in values.items():
        kind = type(constants[key])
        if kind is float and is_number(value):
            value = float(value)
        if type(value) is not kind:
            raise TypeError(
                f"{name}: got {key}={value!r}, expected a {kind.__name__} as its default, "
                f"{constants[key]!r}"
            )
        checked[key] = value
    return checked


def size(where: str, size: Any, sizes: Collection[str]) -> Size:
    """A size, if it is one of the sizes declared, hidden_size or 1."""
    if type(size) is int and size == 1:
        return size
    if isinstance(size, str) and (size == "hidden_size" or size in sizes):
        return size
    raise ValueError(
        f"{where} has the size {size!r}: expected {listed(('hidden_size', *sizes))} or the "
        "number 1; name other sizes in sizes"
    )
