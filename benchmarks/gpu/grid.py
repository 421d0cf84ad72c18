"""What is measured on a GPU, the most important first: time may end before the grid does."""

from __future__ import annotations

from dataclasses import dataclass

import written
from peers import Shape

CELLS = {"LSTM": 4, "GRU": 3}  # gates
MATHS = ("bf16", "fp32", "fp16", "tf32")
WRITTEN = {cell.__name__: cell for cell in (written.LSTM, written.LightGRU, written.LayerNormLSTM)}
GATES = {**CELLS, "LightGRU": 2, "LayerNormLSTM": 4}

# By rank, after which they are ordered together with the rank of the math.
SHAPES: dict[Shape, int] = {
    Shape(35, 20, 200): 0,
    Shape(35, 20, 650): 0,
    Shape(1024, 1, 256): 0,
    Shape(512, 8, 512): 0,
    Shape(512, 8, 1024): 0,
    Shape(1024, 16, 768): 0,
    Shape(35, 20, 1150): 1,
    Shape(35, 20, 1500): 1,
    Shape(70, 80, 1150): 1,
    Shape(35, 64, 256): 1,
    Shape(100, 128, 1024): 1,
    Shape(50, 64, 2048): 1,
    Shape(35, 20, 650, packed=True): 1,
    Shape(80, 32, 256, packed=True): 1,
    Shape(200, 32, 128): 2,
    Shape(100, 1, 512): 2,
    Shape(35, 20, 650, L=2): 2,
    Shape(35, 20, 650, D=2): 2,
    Shape(60, 16, 256, L=2, D=2): 2,
}
WRITTEN_SHAPES = (Shape(35, 20, 200), Shape(35, 20, 650), Shape(200, 32, 128))
LOOPED = (Shape(35, 20, 650), Shape(35, 20, 200))  # where the loop in PyTorch is timed too


@dataclass(frozen=True)
class Job:
    """A layer of rnnext, or a cell written in Python, on a shape.

    Attributes:
        kind: layer or written.
        math: a dtype, or tf32: float32 where products may round.
    """

    kind: str
    cell: str
    shape: Shape
    math: str

    def __str__(self) -> str:
        return f"{'written ' * (self.kind == 'written')}{self.cell} {self.shape} {self.math}"

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    @property
    def others(self) -> list[str]:
        """What it is compared with, the peer of its errors first; cuDNN is torch's layer."""
        if self.kind == "written":
            return ["loop", "built-in"]
        return ["torch", "loop"] if self.shape in LOOPED else ["torch"]


def jobs(cells: list[str], maths: list[str], shapes: list[Shape] | None = None) -> list[Job]:
    """The grid, or of it the shapes given, in order of importance."""
    ranked: list[tuple[int, Job]] = []
    for math in maths:
        rank = MATHS.index(math)
        for shape in SHAPES if shapes is None else shapes:
            of_shape = SHAPES.get(shape, 0)
            ranked += [(rank + 2 * of_shape, Job("layer", cell, shape, math)) for cell in cells]
        if math in ("bf16", "fp32"):
            of_written = WRITTEN_SHAPES if shapes is None else shapes
            padded = [s for s in of_written if s == Shape(s.T, s.N, s.H)]
            ranked += [(rank + 1, Job("written", w, s, math)) for s in padded for w in WRITTEN]
    return [job for _, job in sorted(ranked, key=lambda pair: pair[0])]
