"""A result file of layers.py as text: targets, then every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_floor import TERMS
from gpu_targets import verdicts
from report_parts import refused, table

Row = dict[str, Any]

_TERMS = (
    "A ratio is the median time of the other over ours, all run in turn in one process; cuDNN is "
    "torch.nn's layer. A time is that of a call within a burst; **graph** is the same call out of "
    "a CUDA graph, without what the host does for it. Training is forward and backward, to the "
    "input and all weights. An error is the largest norm of a difference from float64's over the "
    "norm, among outputs / among gradients; what is wrong is not timed. " + TERMS
)


def write(result: dict[str, Any], path: Path) -> None:
    """The report, beside the result file."""
    path.with_suffix(".md").write_text(long(result, path) + "\n")


def short(result: dict[str, Any]) -> str:
    """The verdicts, and what was refused."""
    return "\n\n".join([*refused(result), verdicts(result["rows"])])


def long(result: dict[str, Any], path: Path) -> str:
    """Everything, as Markdown."""
    facts, chip = result["about"], result["chip"]
    rates = ", ".join(f"{rate:.3g} TFLOP/s in {math}" for math, rate in chip["teraflops"].items())
    parts = [
        f"# Layers on {facts['device']}, measured",
        f"{facts['device']}, driver {facts['driver']}, CUDA {facts['cuda']}, cuDNN "
        f"{facts['cudnn']}, torch {facts['torch']}, rnnext {facts['rnnext']}, {facts['date']}. "
        "TF32 is allowed in the rows that say so, and in no others. Made by "
        f"`benchmarks/gpu/layers.py` from [{path.name}]({path.name}), in "
        f"{facts['seconds']:.0f} s.",
        _TERMS,
        *refused(result),
        "## Targets",
        verdicts(result["rows"]),
        "## Every row",
        table(_HEAD, [_cells(row) for row in result["rows"]]),
        f"Rates in the same run: {rates}; copies {chip['gigabytes']:.0f} GB/s.",
    ]
    if result["left_out"]:
        parts += ["There was no time for:", "\n".join(f"- {job}" for job in result["left_out"])]
    notes = [
        f"- {row['id']} {row['mode']}: {name} {why}"
        for row in result["rows"]
        for name, why in row["notes"].items()
    ]
    if notes:
        parts += ["Of others, and of graphs:", "\n".join(notes)]
    return "\n\n".join(parts)


_HEAD = ["layer", "mode", "math", "shape", "cuDNN's way", "ms", "us a step", "graph ms"]
_HEAD += ["cuDNN ms", "cuDNN graph ms", "cuDNN ratio", "graph ratio", "loop ratio"]
_HEAD += ["built-in ratio", "fraction", "bound", "error", "cuDNN error"]


def _cells(row: Row) -> list[str]:
    ms, graph, ratios = row["milliseconds"], row["graph_milliseconds"], row["ratios"]

    def shown(values: dict[str, float], name: str, form: str) -> str:
        return form.format(values[name]) if name in values else ""

    return [
        f"{'written ' * (row['kind'] == 'written')}{row['cell']}",
        *(row[key] for key in ("mode", "math", "shape", "algorithm")),
        f"{ms['rnnext']:.3f}",
        f"{row['microseconds_a_step']:.2f}",
        shown(graph, "rnnext", "{:.3f}"),
        shown(ms, "torch", "{:.3f}"),
        shown(graph, "torch", "{:.3f}"),
        shown(ratios, "torch", "{:.2f}"),
        shown(row["graph_ratios"], "torch", "{:.2f}"),
        shown(ratios, "loop", "{:.2f}"),
        shown(ratios, "built-in", "{:.2f}"),
        f"{row['fraction']:.0%}",
        row["bound"],
        _errors(row, "rnnext"),
        _errors(row, "torch"),
    ]


def _errors(row: Row, name: str) -> str:
    """Of outputs / of gradients."""
    return " / ".join(f"{value:.0e}" for value in row["errors"].get(name, {}).values())
