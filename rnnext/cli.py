"""The command `rnnext`: a table of sub-commands, and the one place where errors become messages.

A sub-command is a dataclass of options and a function that takes it; the function's module is
imported only when the sub-command runs, so that `rnnext --help` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union

import tyro

from .lm.errors import UserError
from .lm.options import CellsOptions, EvaluateOptions, GenerateOptions, TrainOptions


class Command(NamedTuple):
    """A sub-command: its options (the docstring and the fields are its help) and what runs it."""

    options: type
    module: str
    function: str

    def load(self) -> Callable[[Any], int]:
        """The function that takes the options and returns the exit status."""
        function: Callable[[Any], int] = getattr(import_module(self.module), self.function)
        return function


COMMANDS = {
    "train": Command(TrainOptions, "rnnext.lm.train", "train"),
    "evaluate": Command(EvaluateOptions, "rnnext.lm.evaluate", "evaluate"),
    "generate": Command(GenerateOptions, "rnnext.lm.generate", "generate"),
    "cells": Command(CellsOptions, "rnnext.cells.listing", "show"),
}

DESCRIPTION = """\
Recurrent networks in PyTorch, tried on text.

`rnnext train` trains a language model, with no download needed; `rnnext evaluate --run runs/lstm-1`
measures it, `rnnext generate --run runs/lstm-1` lets it write. `rnnext cells` lists the recurrent
layers there are besides torch.nn's. `rnnext train --help` explains every option."""

STATUS_USER_ERROR = 2
STATUS_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended: 128 + SIGINT
STATUS_BROKEN_PIPE = 141  # and for one whose reader went away: 128 + SIGPIPE


def parse(argv: Sequence[str]) -> tuple[Command, Any]:
    """The chosen sub-command and its options; exits as argparse does on `--help` and on errors."""
    subcommands = tuple(
        Annotated[command.options, tyro.conf.subcommand(name)] for name, command in COMMANDS.items()
    )
    choice: Any = Union[subcommands]  # noqa: UP007 (the members are computed)
    options = tyro.cli(
        choice,
        prog="rnnext",
        description=DESCRIPTION,
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return next(c for c in COMMANDS.values() if c.options is type(options)), options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `rnnext`; by default those of this process.

    Returns:
        The exit status: 0 if the work was done, 2 for bad input (one line on stderr), 130 if
        Ctrl-C ended it, 1 if a training run diverged.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a word shows "?"
    try:
        command, options = parse(sys.argv[1:] if argv is None else argv)
        return command.load()(options)
    except SystemExit as stop:  # tyro: 0 after --help, 2 after a bad argument
        return stop.code if isinstance(stop.code, int) else STATUS_USER_ERROR
    except UserError as error:
        print(f"rnnext: {error}", file=sys.stderr)
        return STATUS_USER_ERROR
    except KeyboardInterrupt:
        print("rnnext: interrupted", file=sys.stderr)
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it closes stdout
        return STATUS_BROKEN_PIPE
