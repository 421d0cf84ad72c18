"""What the reports of all benchmarks are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 5) -> str:
    """In Markdown; the first columns are words, the others figures."""
    rules = ["---"] * left + ["--:"] * (len(head) - left)
    rows = [" | ".join(line) for line in (head, *lines)]
    return "\n".join(
        [f"| {rows[0]} |", f"|{'|'.join(rules)}|", *(f"| {row} |" for row in rows[1:])]
    )


def judged(value: float, aim: float | None, form: str) -> str:
    """A figure, with what it is to be at least."""
    text = form.format(value)
    if aim is None:
        return text
    return f"{text} (aim {form.format(aim)}: {'met' if value >= aim else '**not met**'})"


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def refused(result: dict[str, Any]) -> list[str]:
    """What a result file says was wrong, as parts of a report."""
    lines = [f"- {text}" for text in result["refused"]]
    return ["**Not timed, being wrong:**", "\n".join(lines)] if lines else []
