"""What `--cell` names: layers built in, those of rnnext.cells, or a user's class in a Python file.

A class is found in its file as it was read once: what runs is what the run folder gets a copy of.
"""

from __future__ import annotations

import hashlib
import importlib
import linecache
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import rnnext

from .errors import UserError, require
from .options import Impl, ModelOptions

LAYERS = {"LSTM": "LSTM", "GRU": "GRU", "RNN_TANH": "RNN", "RNN_RELU": "RNN"}
WEIGHT_DROPOUT = "weight_dropout"  # of all rnnext's layers with a recurrent matrix
TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Cell:
    """Recurrent layers to be made.

    Attributes:
        name: what the cell is called.
        layer: the class.
        arguments: keyword arguments that are the cell's own, and weight_dropout.
        file: where the class was found; None for what is built in.
        source: what the file holds.
    """

    name: str
    layer: type[nn.Module]
    arguments: Mapping[str, object]
    file: Path | None = None
    source: bytes = b""

    def layers(self, *sizes: int, dropout: float) -> nn.Module:
        """Make the layers; a written cell is compiled, so that no error of its waits for training.

        Args:
            sizes: input size, hidden size and number of layers.
            dropout: between the layers.

        Raises:
            UserError: the cell does not take the sizes or its arguments, or can't be compiled.
        """
        arguments: dict[str, Any] = dict(self.arguments)
        own = WEIGHT_DROPOUT in (getattr(self.layer, "constants", None) or ())
        weight_dropout = None if own else arguments.pop(WEIGHT_DROPOUT, None)
        try:
            layers = self.layer(*sizes, dropout=dropout, **arguments)
            if weight_dropout is not None:
                rnnext.cells.drop_connect(layers, weight_dropout)
        except rnnext.CellError as error:
            raise UserError(str(error)) from error
        except Exception as error:
            # An initialiser of the user's may fail in any way; a lack of memory is no error of it.
            if self.file is not None and (place := line_of(error, self.file)):
                raise UserError(described(error, place)) from error
            if not isinstance(error, (TypeError, ValueError)):
                raise
            who = "" if str(error).startswith(self.name) else f"{self.name}: "
            raise UserError(f"{who}{error}") from error
        if self.file is not None:
            try:
                with torch.no_grad():
                    layers.eval()(torch.zeros(1, 1, sizes[0]))
            except (rnnext.CellError, RuntimeError) as error:
                raise UserError(str(error)) from error
        return layers.train()


def load_cell(options: ModelOptions, impl: Impl, helpers: Sequence[Path] = ()) -> Cell:
    """Find what `--cell` names and read its options.

    Args:
        options: whose `cell` and `cell_options` count.
        impl: whose layers built-in cells are.
        helpers: folders besides its own in which a file may have modules that it imports.

    Raises:
        UserError: there is no such file or class, the file does not import, or an option is
            unknown, missing or of a wrong type.
    """
    name, file = options.cell_name, options.cell_file
    if file is None and name in LAYERS:
        kind = LAYERS[name]
        layer = getattr(rnnext if impl == "rnnext" else nn, kind)
        declared: dict[str, object] = {"proj_size": 0} if kind == "LSTM" else {}
        declared |= {WEIGHT_DROPOUT: 0.0} if impl == "rnnext" else {}
        arguments = read_options(name, declared, options.cell_options)
        if kind == "RNN":
            arguments["nonlinearity"] = name.removeprefix("RNN_").lower()
        return Cell(name, layer, arguments)
    require(
        impl == "rnnext",
        f"--impl torch: PyTorch has no {name}, {file or 'rnnext'} has it; leave --impl out (with "
        "RNNEXT_COMPILE=0 in the environment the cell runs step by step in PyTorch)",
    )
    if file is None:
        found = getattr(rnnext.cells, name.removeprefix("cells."))
        return Cell(name, found, read_options(name, declared_options(found), options.cell_options))
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the cell's file {file}: {error.strerror}") from error
    found = find_class(load_module(file, source, helpers), file, name)
    arguments = read_options(name, declared_options(found), options.cell_options)
    return Cell(name, found, arguments, file, source)


def declared_options(cell: type[Any]) -> dict[str, object]:
    """What the options of a cell are declared with, as `read_options` takes it."""
    if not issubclass(cell, rnnext.Recurrent):  # BatchNormLSTM
        return dict(cell.constants)
    declared = {**dict.fromkeys(cell.sizes, int), **(cell.constants or {}), "heads": 1}
    declared.setdefault(WEIGHT_DROPOUT, 0.0)
    return declared


def find_class(module: ModuleType, file: Path, name: str) -> type[rnnext.Recurrent]:
    """The cell of that name in a module.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    cells = {k: v for k, v in vars(module).items() if is_cell(v)}
    if name in cells:
        return cells[name]
    problem = (
        f"{name} is no subclass of rnnext.Recurrent"
        if hasattr(module, name)
        else (f"there is no class {name}")
    )
    there = f"its cells are {', '.join(cells)}" if cells else "it has no cell at all"
    raise UserError(f"{file}: {problem}; {there}")


def is_cell(value: object) -> bool:
    """Whether something is a class of layers that a user has written."""
    is_one = isinstance(value, type) and issubclass(value, rnnext.Recurrent)
    return is_one and value is not rnnext.Recurrent


def read_options(
    cell: str, declared: Mapping[str, object], given: Sequence[str]
) -> dict[str, object]:
    """The values of `NAME=VALUE` options, each of the type that it is declared with.

    Args:
        cell: its name.
        declared: default values by name; `int` for a size, which has none.
        given: the options.

    Raises:
        UserError: an option that is not declared or of a wrong type; a size that is missing.
    """
    kinds = {k: v if isinstance(v, type) else type(v) for k, v in declared.items()}
    values: dict[str, object] = {}
    for option in given:
        name, _, text = option.partition("=")
        if name not in declared:
            known = ", ".join(f"{k} ({kind.__name__})" for k, kind in kinds.items())
            takes = f"takes {known}" if known else "takes none"
            raise UserError(f"--cell-options {option}: {cell} has no {name}, it {takes}")
        require(name not in values, f"--cell-options gives {name} twice: leave one out")
        try:
            values[name] = TRUTH[text.lower()] if kinds[name] is bool else kinds[name](text)
        except (KeyError, ValueError) as error:
            kind = "true or false" if kinds[name] is bool else f"of type {kinds[name].__name__}"
            default = declared[name]
            example = "" if isinstance(default, type) else f", as its default {default!r}"
            raise UserError(f"--cell-options {option}: {name} must be {kind}{example}") from error
    for name, default in declared.items():
        require(
            name in values or not isinstance(default, type),
            f"{cell} needs the size {name}: --cell-options {name}=INT",
        )
    return values


def load_module(file: Path, source: bytes, helpers: Sequence[Path] = ()) -> ModuleType:
    """Run a file of cells as a module; the same file with the same content is run once.

    The module's name tells files and contents apart and is the same in every process. While the
    file runs, modules beside it can be imported, as those beside a script.

    Args:
        file: its path.
        source: what it holds.
        helpers: more folders with modules for it.

    Raises:
        UserError: the file does not run.
    """
    path = file.resolve()
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()[:16]
    name = f"{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None, "a loader was given"
    module = sys.modules[name] = module_from_spec(spec)
    linecache.checkcache(str(path))  # messages show lines of the file as it is now
    importlib.invalidate_caches()  # and modules beside it may be new
    try:
        with first_on_path([path.parent, *helpers]):
            # Not by the spec's loader: it reads the file again, or bytecode of an earlier second.
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except rnnext.CellError as error:
        del sys.modules[name]
        raise UserError(str(error)) from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = f"{file} does not import: {described(error, line_of(error, path))}"
        if helpers and isinstance(error, ImportError):
            there = ", ".join(map(str, helpers))
            message += f"; put modules that stood beside the cell in {there} into {file.parent}"
        raise UserError(message) from error
    return module


@contextmanager
def first_on_path(folders: Sequence[Path]) -> Iterator[None]:
    """Let imports look into some folders before all others."""
    entries = [str(folder) for folder in folders]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            if entry in sys.path:  # unless the file itself has taken it away
                sys.path.remove(entry)


def line_of(error: BaseException, file: Path) -> str:
    """Where in a user's file, or one beside it, an error was raised: `FILE:LINE`, "" if nowhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    folder = file.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent == folder:
            return f"{frame.filename}:{frame.lineno}"
    return ""


def described(error: BaseException, place: str) -> str:
    """An error in one line, as Python names it."""
    message: Any = error.msg if isinstance(error, SyntaxError) else error
    kind = type(error).__name__
    text = " ".join(f"{kind}: {message}".split()).removesuffix(":")
    return f"{place}: {text}" if place else text
