"""What the CUDA kernels are to show, on an H200, and whether rows of a result file show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from report_parts import judged, mean, table

Row = dict[str, Any]

# Norm of an error over the norm, of every output and gradient; twice a peer's own is as good.
ERRORS = {"bf16": 1e-2, "fp16": 3e-3, "tf32": 1e-3, "fp32": 1e-5}

LOW, SINGLE = ("bf16", "fp16"), ("fp32", "tf32")


@dataclass(frozen=True)
class Target:
    """At least.

    Attributes:
        where: in words.
        belongs: whether a row counts.
        over: the other time of the ratio: torch (cuDNN), built-in (our LSTM) or loop.
        mean: geometric mean of the ratios.
        worst: the lowest of them.
    """

    where: str
    belongs: Callable[[Row], bool]
    mean: float
    worst: float | None = None
    over: str = "torch"


def _slow(row: Row) -> bool:
    """Where cuDNN takes one launch or more for each step."""
    return row["kind"] == "layer" and not row["packed"] and row["algorithm"] == "STANDARD"


def _slow_of(maths: tuple[str, ...], N: range, H: range) -> Callable[[Row], bool]:
    return lambda row: _slow(row) and row["math"] in maths and row["N"] in N and row["H"] in H


def _written(*cells: str) -> Callable[[Row], bool]:
    return lambda row: row["kind"] == "written" and row["cell"] in cells


FEW, MANY = range(1, 21), range(64, 129)
POINTWISE = _written("LSTM", "LightGRU")
TARGETS = (
    Target("bf16, fp16 where cuDNN is slow, N <= 20, H <= 1024",
           _slow_of(LOW, FEW, range(1, 1025)), 4, 2),
    Target("fp32, TF32 the same, H <= 768", _slow_of(SINGLE, FEW, range(1, 769)), 2.5, 1.3),
    Target("bf16, H 1150 and 1500, N <= 20", _slow_of(("bf16",), FEW, range(1150, 1501)), 2.5),
    Target("fp32, TF32, H 1150 and 1500, N <= 20", _slow_of(SINGLE, FEW, range(1150, 1501)), 1.3),
    Target("bf16, fp16, N 64 to 128", _slow_of(LOW, MANY, range(1, 2048)), 1.5, 1.0),
    Target("fp32, TF32, N 64 to 128", _slow_of(SINGLE, MANY, range(1, 2048)), 1.0),
    Target("fp16 where cuDNN is persistent",
           lambda row: row["kind"] == "layer" and row["algorithm"] == "PERSIST_STATIC", 1 / 1.1),
    Target("H 2048, N >= 64",
           lambda row: _slow(row) and row["H"] == 2048 and row["N"] >= 64, 1.0),
    Target("written cells of product and pointwise form, beside our LSTM", POINTWISE, 1 / 1.3,
           over="built-in"),
    Target("the same, beside the loop", POINTWISE, 10, over="loop"),
    Target("layer norm, beside the loop", _written("LayerNormLSTM"), 3, over="loop"),
    Target("packed lengths", lambda row: row["kind"] == "layer" and row["packed"], 3),
)  # fmt: skip


def verdicts(rows: list[Row]) -> str:
    """The targets as a table: what was aimed at, what was measured, whether it is met."""
    head = ["where", "mode", "over", "rows", "mean ratio", "lowest ratio", "in a graph, mean"]
    lines = []
    for target in TARGETS:
        for mode in ("training", "inference"):
            found = [
                row
                for row in rows
                if row["mode"] == mode and target.belongs(row) and target.over in row["ratios"]
            ]
            line = [target.where, mode, {"torch": "cuDNN"}.get(target.over, target.over)]
            if not found:
                lines.append([*line, "0", f"not measured (aim {target.mean:.2f})", "", ""])
                continue
            ratios = {row["id"]: row["ratios"][target.over] for row in found}
            lowest = min(ratios, key=lambda key: ratios[key])
            graphs = [row["graph_ratios"].get(target.over) for row in found]
            line += [str(len(found)), judged(mean(ratios.values()), target.mean, "{:.2f}")]
            line.append(f"{judged(ratios[lowest], target.worst, '{:.2f}')} at {lowest}")
            lines.append([*line, f"{mean(graphs):.2f}" if graphs and all(graphs) else ""])
    return table(head, lines, left=3)
