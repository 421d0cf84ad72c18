"""A result file of compare.py as text and as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from report_parts import judged, mean, refused, table
from targets import KINDS, of_kind, target

Row = dict[str, Any]
COLORS = {"training": "tab:blue", "inference": "tab:orange"}
MARKERS = {"float32": "o", "bfloat16": "s"}


def write(result: dict[str, Any], path: Path) -> None:
    """The report beside the result file: `.md`, which shows the picture, `.png`."""
    path.with_suffix(".md").write_text(long(result, path) + "\n")
    if result["rows"]:
        picture(result, path.with_suffix(".png"))


def short(result: dict[str, Any]) -> str:
    """The table of ratios of the README, and the summary."""
    tables = [speed(result), summary(result)] if result["rows"] else []
    return "\n\n".join(filter(None, [*refused(result), *tables]))


def long(result: dict[str, Any], path: Path) -> str:
    """Everything, as Markdown."""
    facts = result["about"]
    threads = " and ".join(map(str, facts["threads"]))
    parts = [
        "# Layers on a CPU, measured",
        f"{facts['processor']}, {threads} threads, torch {facts['torch']}, "
        f"rnnext {facts['rnnext']} ({facts['build']['instruction_set']}), {facts['date']}. Made by "
        f"`benchmarks/compare.py` from [{path.name}]({path.name}).",
        _TERMS,
        *refused(result),
        *(_figures(result, path) if result["rows"] else []),
        "## The machine, by probes in the same run",
        *(_machine(machine) for machine in result["machines"]),
    ]
    return "\n\n".join(parts)


def _figures(result: dict[str, Any], path: Path) -> list[str]:
    return [
        f"![ratios and fractions by shape]({path.with_suffix('.png').name})",
        "## Summary",
        summary(result),
        "## Every shape",
        table(_HEAD, [_cells(row) for row in result["rows"]]),
    ]


_TERMS = (
    "A ratio is torch.nn's median time over ours, both run in turn in one process; the loop is the "
    "same layer in plain PyTorch. The **fraction** is the floor over our time. The floor is the "
    "larger of two: the operations of the products at the measured peak and then the elementwise "
    "work at its measured cost; the bytes of the recurrent weights, read once a step from the "
    "smallest cache that holds a thread's share. An error is the largest norm of a difference from "
    "float64's over the norm, among outputs and gradients."
)


def speed(result: dict[str, Any]) -> str:
    """Ratios over torch.nn by shape, in float32 with the most threads: the README's table.

    Empty where there are none of LSTM and GRU.
    """
    threads = max(result["about"]["threads"])
    ratios = {
        (row["shape"], row["cell"], row["mode"]): row["ratio"]
        for row in _rows(result, dtype="float32", threads=threads)
    }
    columns = [
        (cell, mode)
        for cell, mode in itertools.product(("LSTM", "GRU"), COLORS)
        if any(key[1:] == (cell, mode) for key in ratios)
    ]
    if not columns:
        return ""
    lines = []
    for shape in dict.fromkeys(key[0] for key in ratios):
        found = [ratios.get((shape, *column)) for column in columns]
        lines.append([shape, *("" if ratio is None else f"{ratio:.2f}" for ratio in found)])
    means = [mean(v for key, v in ratios.items() if key[1:] == column) for column in columns]
    lines.append(["**geometric mean**", *(f"**{value:.2f}**" for value in means)])
    return table(["shape", *(f"{cell} {mode}" for cell, mode in columns)], lines, left=1)


def summary(result: dict[str, Any]) -> str:
    """Of each cell, mode and dtype: ratios, fractions, and what was aimed at."""
    head = ["layer", "mode", "dtype", "threads", "shapes", "mean ratio", "lowest ratio"]
    head += ["lowest fraction", "mean fraction", "beside"]
    lines = []
    for threads, dtype, mode, cell in _values(result, "threads", "dtype", "mode", "cell"):
        for kind in KINDS:
            rows = _rows(result, threads=threads, dtype=dtype, mode=mode, cell=cell)
            rows = [row for row in rows if of_kind(row, kind)]
            if rows:
                lines.append(_group(result, kind, rows))
    errors = ", ".join(
        f"{max(row['errors'][impl] for row in _rows(result, dtype=dtype)):.1e} of {name} in {dtype}"
        for (dtype,) in _values(result, "dtype")
        for impl, name in (("rnnext", "rnnext"), ("torch", "torch.nn"))
    )
    text = (
        "Means are geometric. The fractions are those of the shapes where operations bound the "
        "floor, for one row those where bytes do. Beside: bfloat16 over our float32, packed over "
        f"our own time on padded input. The largest errors: {errors}."
    )
    return table(head, lines, left=5) + "\n\n" + text


def _group(result: dict[str, Any], kind: str, rows: list[Row]) -> list[str]:
    """A line of the summary."""
    first = rows[0]
    facts = [str(first[key]) for key in ("cell", "mode", "dtype", "threads")]
    aim = target(kind, first["cell"], first["mode"], first["dtype"], first["threads"])
    worst = min(rows, key=lambda row: row["ratio"])
    line = [*facts, kind, judged(mean(row["ratio"] for row in rows), aim and aim.mean, "{:.2f}")]
    line.append(f"{judged(worst['ratio'], aim and aim.worst, '{:.2f}')} at {worst['shape']}")

    bounded = [
        row for row in rows if row["bound"] == ("bytes" if kind == "one row" else "operations")
    ]
    if bounded:
        farthest = min(bounded, key=lambda row: row["fraction"])
        lowest = judged(farthest["fraction"], aim and aim.fraction, "{:.0%}")
        line += [f"{lowest} at {farthest['shape']}", f"{mean(r['fraction'] for r in bounded):.0%}"]
    else:
        line += ["", ""]

    ours = [(row["milliseconds"]["rnnext"], _beside(row)) for row in rows]
    ratios = [other / mine for mine, other in ours if other is not None]
    line.append(judged(mean(ratios), aim and aim.beside, "{:.2f}") if ratios else "")
    return line


def _beside(row: Row) -> float | None:
    """Milliseconds of ours, timed in turn: packed, on the padded input; in bfloat16, in float32."""
    return row["milliseconds"].get("padded" if row["packed"] else "float32")


_HEAD = ["layer", "mode", "dtype", "threads", "shape", "torch.nn ms", "loop ms", "rnnext ms"]
_HEAD += ["ratio", "over the loop", "GFLOP/s", "fraction", "bound", "torch.nn error"]
_HEAD += ["loop error", "rnnext error"]


def _cells(row: Row) -> list[str]:
    """A line of the table of every shape."""
    ms, errors = row["milliseconds"], row["errors"]
    return [
        *(str(row[key]) for key in ("cell", "mode", "dtype", "threads", "shape")),
        *(f"{ms[name]:.3f}" if name in ms else "" for name in ("torch", "loop", "rnnext")),
        f"{row['ratio']:.2f}",
        f"{ms['loop'] / ms['rnnext']:.2f}" if "loop" in ms else "",
        f"{row['gflops_per_second']:.0f}",
        f"{row['fraction']:.0%}",
        row["bound"],
        *(f"{errors[name]:.0e}" if name in errors else "" for name in ("torch", "loop", "rnnext")),
    ]


def _machine(machine: dict[str, Any]) -> str:
    peaks = ", ".join(f"{peak:.0f} GFLOP/s in {dtype}" for dtype, peak in machine["gflops"].items())
    reads = ", ".join(f"{rate:.0f} ({size >> 10} KiB)" for size, rate in machine["gigabytes"][::4])
    units = "; ".join(
        f"{cell} {times[0]:.2f} in inference, {times[1]:.2f} and {times[2]:.2f} in training's "
        "forward and backward"
        for cell, times in machine["pointwise"].items()
    )
    return (
        f"Threads: {machine['threads']}. Products: {peaks}. Reading, GB/s by what each thread "
        f"reads again and again: {reads}. Elementwise work, nanoseconds a unit on one thread: "
        f"{units}."
    )


def picture(result: dict[str, Any], path: Path) -> None:
    """Ratios over torch.nn and fractions of the roofline by shape, with the most threads."""
    facts, threads = result["about"], max(result["about"]["threads"])
    rows = _rows(result, threads=threads)
    cells, shapes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("cell", "shape"))
    figure = Figure(figsize=(12, 2 + len(cells) * (0.7 + 0.22 * len(shapes))), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots(len(cells), 2, sharey=True, sharex="col", squeeze=False)
    for pair, cell in zip(axes, cells, strict=True):
        for axis, key in zip(pair, ("ratio", "fraction"), strict=True):
            for mode, dtype in _values(result, "mode", "dtype"):
                found = _rows(result, threads=threads, cell=cell, mode=mode, dtype=dtype)
                axis.plot(
                    [row[key] for row in found],
                    [shapes.index(row["shape"]) for row in found],
                    color=COLORS[mode],
                    marker=MARKERS[dtype],
                    linestyle="none",
                    alpha=0.8,
                    label=f"{mode}, {dtype}",
                )
            axis.axvline(1, color="black", linewidth=0.8)
            axis.grid(True, which="both", alpha=0.25)
            axis.tick_params(labelbottom=True)
        pair[0].set(title=f"{cell}: times as fast as torch.nn", xscale="log")
        pair[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        pair[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        pair[0].xaxis.set_minor_formatter(NullFormatter())
        pair[0].set_yticks(range(len(shapes)), shapes, fontsize="small")
        pair[1].set(title=f"{cell}: floor over time", xlim=(0, None))
        pair[1].xaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"{facts['processor']}, {threads} threads, torch {facts['torch']}, {facts['date']}"
    )
    figure.savefig(path, format="png", dpi=110)


def _rows(result: dict[str, Any], **facts: Any) -> list[Row]:
    return [r for r in result["rows"] if all(r[key] == value for key, value in facts.items())]


def _values(result: dict[str, Any], *keys: str) -> list[tuple[Any, ...]]:
    """Each combination of values that is there, in the order in which they appear."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in result["rows"]))
