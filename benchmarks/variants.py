"""Time the published variants of rnnext.cells beside the plain layer and the loop in PyTorch.

    python benchmarks/variants.py --out benchmarks/results/variants.json
    python benchmarks/variants.py --table benchmarks/results/variants.json

A pass is training: y, and the gradients of the input and all weights. The variant, the plain
layer (rnnext's LSTM, GRU or RNN) and the loop run in turn in one process, which each row has for
itself, and the ratios are those of the medians. The loop is `rnnext.reference.rnn`, the steps in
plain PyTorch: it makes the input's product once for all steps, and here draws its masks by torch's
own generator, once for all steps too. Of the cells that norm several gates together it is
loops.py, which has these side by side, as one writes it; and of zoneout it is, in a row of its own,
the one that makes all of that step by step. Errors are the norm of the
difference to the loop in float64, with the same masks, over the norm: the worst of y and the
gradients.

The table has the perplexities of variants_perplexity.py too, of what its result files beside this
one's have: those of today's recipe, and those with a bias of 0.

With --only or --shapes a part is measured, which replaces the same part of the file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from loops import LOOPS
from machine import about
from peers import Shape, WrongResult, worst_error
from timing import in_turn
from torch import Tensor
from torch.nn.functional import dropout

import rnnext
from rnnext import cells, ops, reference
from rnnext.noise import Bernoulli, Dropout, Noise

SHAPES = (Shape(35, 20, 200), Shape(35, 20, 650), Shape(100, 32, 256))
SEED = torch.tensor(1234567890123)


@dataclass(frozen=True)
class Variant:
    """A row of the table: a cell of rnnext.cells, its options, the layer it is a variant of; and
    where it is not that of the cell, the loop of loops.py that it is timed beside."""

    name: str
    cell: str
    plain: str
    options: dict[str, Any] = field(default_factory=dict)
    weight_dropout: float = 0.0
    loop: str = ""


_ZONEOUT = {"zoneout_h": 0.05, "zoneout_c": 0.5}
VARIANTS = (
    Variant("LSTM, no option", "LSTM", "LSTM"),
    Variant("LSTM, zoneout", "LSTM", "LSTM", _ZONEOUT),
    Variant("the same, loop by steps", "LSTM", "LSTM", _ZONEOUT, loop="zoneout"),
    Variant("LSTM, recurrent dropout", "LSTM", "LSTM", {"recurrent_dropout": 0.25}),
    Variant("LSTM, DropConnect", "LSTM", "LSTM", weight_dropout=0.5),
    Variant("LSTM, hard sigmoid", "LSTM", "LSTM", {"gate_function": "hard_sigmoid"}),
    Variant("LSTM, clipped", "LSTM", "LSTM", {"cell_clip": 3.0, "state_clip": 1.0}),
    Variant("PeepholeLSTM", "PeepholeLSTM", "LSTM"),
    Variant("CoupledLSTM", "CoupledLSTM", "LSTM"),
    Variant("VariationalLSTM", "VariationalLSTM", "LSTM", {"variational_dropout": 0.25}),
    Variant("LayerNormLSTM", "LayerNormLSTM", "LSTM"),
    Variant("LayerNormBasicLSTM", "LayerNormBasicLSTM", "LSTM"),
    Variant("BatchNormLSTM", "BatchNormLSTM", "LSTM"),
    Variant("SLSTM", "SLSTM", "LSTM"),
    Variant("SLSTM, 2 heads", "SLSTM", "LSTM", {"heads": 2}),
    Variant("JANET", "JANET", "LSTM"),
    Variant("SRU", "SRU", "LSTM"),
    Variant("GRU, zoneout", "GRU", "GRU", {"zoneout_h": 0.1}),
    Variant("GRU, recurrent dropout", "GRU", "GRU", {"recurrent_dropout": 0.25}),
    Variant("LayerNormGRU", "LayerNormGRU", "GRU"),
    Variant("DreamerGRU", "DreamerGRU", "GRU"),
    Variant("LightGRU", "LightGRU", "GRU"),
    Variant("MinimalGatedUnit", "MinimalGatedUnit", "GRU"),
    Variant("IRNN", "IRNN", "RNN"),
    Variant("IndRNN", "IndRNN", "RNN"),
)

Pass = Callable[[], tuple[Tensor, ...]]


class Problem:
    """A variant and a shape: the same weights, input and output gradient for kernel and loop."""

    def __init__(self, variant: Variant, shape: Shape) -> None:
        torch.manual_seed(0)
        self.variant = variant
        self.layer = getattr(cells, variant.cell)(shape.H, shape.H, **variant.options)
        if variant.weight_dropout:
            cells.drop_connect(self.layer, variant.weight_dropout)
        for name, weight in self.layer.named_parameters():
            if name.startswith("gain_"):
                # With 1 the paper's LSTM is chaotic at first: rounding grows from step to step.
                torch.nn.init.constant_(weight, 0.5)
        self.plain = getattr(rnnext, variant.plain)(shape.H, shape.H)
        self.x = torch.randn(shape.T, shape.N, shape.H)
        self.dy = torch.randn(shape.T, shape.N, shape.H)
        self.names = [name for name, _ in self.layer.named_parameters()]

    def training(self, impl: str) -> Pass:
        """A pass by the `kernel`, the `loop` or the `plain` layer."""
        leaf = self.x.clone().requires_grad_()
        weights = list((self.plain if impl == "plain" else self.layer).parameters())

        def step() -> tuple[Tensor, ...]:
            if impl == "loop":
                y = self._loop(leaf, weights)
            else:
                y = (self.plain if impl == "plain" else self.layer)(leaf)[0]
            return (y, *torch.autograd.grad(y, [leaf, *weights], self.dy))

        return step

    def _loop(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        written = self.variant.loop or self.variant.cell
        if written in LOOPS:
            return LOOPS[written](x, dict(zip(self.names, weights, strict=True)))
        rate = self.variant.weight_dropout
        if rate:
            pairs = zip(self.names, weights, strict=True)
            weights = [dropout(w, rate) if "weight_hh" in name else w for name, w in pairs]
        with mock.patch.object(reference, "noise_values", quick_noise):
            return reference.rnn(self.layer.declaration, x, [], weights, seed=SEED)[0]

    def errors(self) -> dict[str, float]:
        """Errors of kernel and loop, with the masks of one seed and all of the weights.

        Raises:
            WrongResult: the kernel's is larger than 1e-5 and than twice the loop's.
        """

        def run(impl: str, dtype: torch.dtype) -> Any:
            inputs = [t.detach().to(dtype).requires_grad_() for t in (self.x, *self.weights)]
            y = self._same_masks(impl, inputs[0], inputs[1:])
            return (y, *torch.autograd.grad(y, inputs, self.dy.to(dtype)))

        exact = run("loop", torch.float64)
        errors = {impl: worst_error(run(impl, torch.float32), exact) for impl in ("kernel", "loop")}
        if errors["kernel"] > max(1e-5, 2 * errors["loop"]):
            raise WrongResult(f"{self.variant.name}: {errors}")
        return errors

    def _same_masks(self, impl: str, x: Tensor, weights: list[Tensor]) -> Tensor:
        """y by kernel or loop."""
        named = dict(zip(self.names, weights, strict=True))
        if not isinstance(self.layer, rnnext.Recurrent):  # BatchNormLSTM
            if impl == "loop":
                return LOOPS[self.variant.cell](x, named)
            return torch.func.functional_call(self.layer, named, (x,))[0]
        cell, name = self.layer.declaration, self.layer._cell_name()
        seed = SEED if cell.noise else None
        if impl == "loop":
            return reference.rnn(cell, x, [], weights, seed=seed)[0]
        return ops.rnn(name or cell, x, [], weights, seed=seed)[0]

    @property
    def weights(self) -> list[Tensor]:
        return list(self.layer.parameters())


def quick_noise(
    noise: Noise, number: int, seed: Tensor, place: int, rows: int, width: int, like: Tensor
) -> Tensor:
    """Masks as one draws them in PyTorch; the counter-based generator is slow there."""
    assert isinstance(noise, (Bernoulli, Dropout))
    if isinstance(noise, Bernoulli):
        return like.new_empty(rows, width).bernoulli_(noise.p)
    return dropout(like.new_ones(rows, width), noise.p)


def measured(variant: Variant, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """A row, in a process of its own: the loop becomes slower in one that has run many others."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (variant, shape, options))


def _measured(variant: Variant, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    problem = Problem(variant, shape)
    errors = problem.errors()
    steps = {impl: problem.training(impl) for impl in ("loop", "kernel", "plain")}
    # Whoever runs after the loop finds its memory in disorder; that is no one's time.
    steps = {"loop": steps["loop"], "settle": steps["plain"], **steps}
    times = in_turn(steps, options.seconds, options.rounds)
    medians = {impl: statistics.median(times[impl]) for impl in ("kernel", "plain", "loop")}
    row = {
        "variant": variant.name,
        "plain": variant.plain,
        "shape": str(shape),
        "milliseconds": {impl: 1e3 * value for impl, value in medians.items()},
        "over_plain": medians["kernel"] / medians["plain"],
        "loop_over": medians["loop"] / medians["kernel"],
        "errors": errors,
        "rounds": len(times["kernel"]),
    }
    print(
        f"{variant.name:24} {shape!s:14} {row['milliseconds']['kernel']:7.2f} ms, "
        f"{row['over_plain']:.2f} of {variant.plain}'s; "
        f"the loop takes {row['loop_over']:.2f} times as long; error {errors['kernel']:.1e}",
        flush=True,
    )
    return row


def perplexities(path: Path) -> dict[str, str]:
    """The validation perplexity of each variant in a result file of variants_perplexity.py."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    valid = {
        row["variant"]: "diverged" if row["diverged"] else f"{row['valid_perplexity'][-1]:.0f}"
        for row in rows
    }
    return valid | {"LSTM, no option": valid.get("plain LSTM", "")}


def table(result: dict[str, Any], valid: dict[str, dict[str, str]]) -> str:
    """All result files as Markdown: for each variant and shape, time over the plain layer's, and
    how many times as long the loop takes; of each variant the perplexities, by column."""
    shapes = list(dict.fromkeys(row["shape"] for row in result["rows"]))
    plain = [f"over plain, {shape}" for shape in shapes]
    loop = [f"loop over, {shape}" for shape in shapes]
    lines = [["variant", "plain", *plain, *loop, "error", *valid]]
    lines.append(["---", "---", *["--:"] * (2 * len(shapes) + 1 + len(valid))])
    for variant in VARIANTS:
        rows = {row["shape"]: row for row in result["rows"] if row["variant"] == variant.name}
        if len(rows) < len(shapes):
            continue
        ratios = [
            f"{rows[shape][key]:.2f}" for key in ("over_plain", "loop_over") for shape in shapes
        ]
        error = max(row["errors"]["kernel"] for row in rows.values())
        found = [column.get(variant.name, "") for column in valid.values()]
        lines.append([variant.name, variant.plain, *ratios, f"{error:.0e}", *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def merged(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The rows, and those of the file that were not measured again, in the order of VARIANTS."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {(row["variant"], row["shape"]): row for row in [*old, *rows]}
    keys = [(variant.name, str(shape)) for variant in VARIANTS for shape in SHAPES]
    return [found[key] for key in keys if key in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the result file here")
    parser.add_argument("--table", type=Path, help="print this result file as a table, no more")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="variants that have one in them")
    parser.add_argument("--shapes", nargs="+", metavar="T,N,H", help="these shapes alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each variant and shape")
    parser.add_argument("--rounds", type=int, default=5, help="at least, of each")
    options = parser.parse_args()
    if options.table:
        files = {"perplexity": "", "with a bias of 0": "_zero_bias"}
        valid = {
            column: perplexities(options.table.with_name(f"variants_perplexity{end}.json"))
            for column, end in files.items()
        }
        print(table(json.loads(options.table.read_text()), valid))
        return
    torch.set_num_threads(options.threads)
    shapes = [Shape(*map(int, text.split(","))) for text in options.shapes or []] or SHAPES
    chosen = [v for v in VARIANTS if not options.only or any(w in v.name for w in options.only)]
    rows = [measured(variant, shape, options) for variant in chosen for shape in shapes]
    if options.out:
        result = {"about": about(), "rows": merged(rows, options.out)}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
