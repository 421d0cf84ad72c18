"""What the result is to show, with 2 threads: the aims of the CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = ("padded", "one row", "packed")


@dataclass(frozen=True)
class Target:
    """At least.

    Attributes:
        mean: geometric mean of the ratios over torch.nn.
        worst: the lowest of them.
        fraction: of the roofline, in every shape whose floor `bound` decides.
        beside: geometric mean over `beside_what`, another time of our own.
    """

    mean: float
    worst: float
    fraction: float | None = None
    bound: str = "operations"
    beside: float | None = None


PADDED = {
    ("LSTM", "training", "float32"): Target(1.35, 1.0, 0.88),
    ("GRU", "training", "float32"): Target(2.0, 1.3, 0.88),
    ("LSTM", "inference", "float32"): Target(1.15, 1.0, 0.90),
    ("GRU", "inference", "float32"): Target(1.8, 1.2, 0.90),
}
ONE_ROW = {"LSTM": Target(1.8, 1.3, 0.70, "bytes"), "GRU": Target(4.0, 1.3, 0.70, "bytes")}
HALF = Target(1.5, 1.0, 0.80, beside=1.7)  # beside: over our float32
PACKED = Target(2.0, 1.2, beside=1.5)  # beside: over our own time on padded input


def of_kind(row: dict[str, Any], kind: str) -> bool:
    """One row: all that are not packed and have one sequence, so they are padded ones too."""
    return row["packed"] == (kind == "packed") and (kind != "one row" or row["N"] == 1)


def target(kind: str, cell: str, mode: str, dtype: str, threads: int) -> Target | None:
    """None where nothing is aimed at."""
    if threads != 2:
        return None
    if kind == "packed":
        return PACKED if dtype == "float32" else None
    if dtype == "bfloat16":
        return HALF if (kind, mode) == ("padded", "training") else None
    if kind == "one row":
        return ONE_ROW.get(cell) if mode == "training" else None
    return PADDED.get((cell, mode, dtype))
