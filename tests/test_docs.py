"""The Python in pages of docs/ runs, block after block, and prints what stands under it."""

import contextlib
import doctest
import io
import linecache
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What stands right under a block in one of these is what it prints, or its error; ... is anything.
SHOWS = ("text", "cpp")
FLAGS = doctest.ELLIPSIS | doctest.REPORT_NDIFF


class Block(NamedTuple):
    """Code of the page and what the page says that it prints, if anything."""

    line: int
    code: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    """The page's blocks of Python, each with the one that follows if only blank lines do."""
    found = list(FENCE.finditer(text))
    result = []
    for fence, after in zip(found, [*found[1:], None], strict=True):
        if fence[1] != "python":
            continue
        shown = None
        if after and after[1] in SHOWS and not text[fence.end() : after.start()].strip():
            shown = after[2]
        result.append(Block(text.count("\n", 0, fence.start()) + 2, fence[2], shown))
    return result


def run(page: Path, block: Block, names: dict[str, Any]) -> str:
    """What a block prints; its error too, where the page shows one."""
    # A file like the reader's: messages quote its lines, generated code quotes its steps.
    file = Path(f"block_{block.line}") / "my_cells.py"
    file.parent.mkdir()
    file.write_text(block.code)
    linecache.checkcache(str(file.absolute()))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, str(file.absolute()), "exec", dont_inherit=True), names)
    except Exception as error:
        message = f"{type(error).__name__}: {error}\n"
        if block.shown is None or type(error).__name__ not in block.shown:
            raise AssertionError(f"{page.name}:{block.line}: {message}") from error
        printed.write(message)
    return printed.getvalue().rstrip() + "\n" if printed.getvalue() else ""


@pytest.mark.parametrize(
    "name", ["writing-a-cell.md", "cells.md", "pytorch.md", "compile-and-export.md"]
)
def test_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / name
    monkeypatch.chdir(tmp_path)
    # Inductor compiles for long; test_modules_compile.py has it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    names: dict[str, Any] = {"__name__": "my_cells"}
    found = blocks(page.read_text(encoding="utf-8"))
    assert found
    torch.manual_seed(0)
    checker = doctest.OutputChecker()
    for block in found:
        printed = run(page, block, names)
        if not checker.check_output(block.shown or "", printed, FLAGS):
            example = doctest.Example(block.code, block.shown or "")
            difference = checker.output_difference(example, printed, FLAGS)
            pytest.fail(f"{page.name}:{block.line} prints something else.\n{difference}")
