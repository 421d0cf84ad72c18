"""The curves of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter


def curves(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    """Draw training and validation perplexity, and under them the learning rate, by epoch.

    Args:
        rows: the lines of metrics.jsonl: `epoch`, `train_perplexity`, `valid_perplexity`, `lr`.
        title: stands above the picture.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    perplexity, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs = [row["epoch"] for row in rows]
    for split, name in (("train", "training (with dropout)"), ("valid", "validation")):
        values = [row[f"{split}_perplexity"] for row in rows]
        perplexity.plot(epochs, values, marker="o", markersize=3, label=name)
    perplexity.set(ylabel="perplexity", yscale="log", title=title)
    rate.step(epochs, [row["lr"] for row in rows], where="mid", color="gray")
    rate.set(ylabel="learning rate", yscale="log", xlabel="epoch")
    if rows:
        perplexity.legend()
        rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    perplexity.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    perplexity.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    for axis in (perplexity, rate):
        axis.grid(True, which="both", alpha=0.2)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
