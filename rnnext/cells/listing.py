"""What there is in `rnnext.cells`: every cell with one line, its equations and its options."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from rnnext import cells
from rnnext.noise import listed

if TYPE_CHECKING:
    from rnnext.lm.options import CellsOptions


def listing(names: list[str] | None = None) -> str:
    """The cells of these names, by default all, as text."""
    return "\n\n".join(_entry(name) for name in names or cells.CELLS)


def _entry(name: str) -> str:
    cell = getattr(cells, name)
    summary, equations, *_ = inspect.getdoc(cell).split("\n\n")  # type: ignore[union-attr]
    options = [f"{key}={value!r}" for key, value in cell.constants.items()]
    lines = [f"{name}: {' '.join(summary.split())}", equations]
    return "\n".join([*lines, f"    options: {listed(options)}"])


def show(options: CellsOptions) -> int:
    """Run `rnnext cells`."""
    from rnnext.lm.errors import require

    known = ", ".join(cells.CELLS)
    name = options.name
    require(name is None or name in cells.CELLS, f"--name must be one of {known}, not {name}")
    print(listing([name] if name else None))
    return 0
