"""The floor of a layer's time: what no implementation can do without, on a machine as measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peers import Shape

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Machine:
    """What so many threads do together; `probes.measure` makes it.

    Attributes:
        threads: how many.
        gflops: multiply-adds on registers, each counted as two operations, by dtype; no bfloat16
            where the processor has no such products.
        gigabytes: reading bandwidth, as pairs of the bytes that each thread reads again and again
            and gigabytes a second of all threads.
        pointwise: nanoseconds that one thread takes for a unit and step, by cell: in inference,
            training's forward, its backward. In float32, as which bfloat16 is computed.
    """

    threads: int
    gflops: dict[str, float]
    gigabytes: list[tuple[int, float]]
    pointwise: dict[str, tuple[float, float, float]]

    def peak(self, dtype: str) -> float:
        """Operations a second; those of float32 where the processor has none of the dtype."""
        return 1e9 * self.gflops.get(dtype, self.gflops["float32"])

    def bandwidth(self, share: float) -> float:
        """Bytes a second where each thread reads its share from the smallest cache that holds it.

        What is measured for larger sets counts too: a smaller one is not slower, but for noise.
        """
        holding = [rate for size, rate in self.gigabytes if size >= share]
        return 1e9 * (max(holding) if holding else self.gigabytes[-1][1])


@dataclass(frozen=True)
class Floor:
    """Seconds: of the products at the peak and the elementwise work; of reading the weights."""

    operations: float
    bytes: float

    @property
    def seconds(self) -> float:
        return max(self.operations, self.bytes)

    @property
    def bound(self) -> str:
        return "operations" if self.operations >= self.bytes else "bytes"


def weight_count(gates: int, shape: Shape) -> int:
    """Elements of all matrices, of a cell of so many gates."""
    inputs = [shape.H] + [shape.D * shape.H] * (shape.L - 1)
    return sum(shape.D * gates * shape.H * (columns + shape.H) for columns in inputs)


def products(gates: int, mode: str, shape: Shape) -> float:
    """Operations of the matrix products: two for each weight and row, thrice in training.

    Without those of the recurrent weights in a sequence's first step, where its state is zero.
    """
    begin = shape.L * shape.D * gates * shape.H**2 * shape.N
    passes = 3 if mode == "training" else 1
    return 2.0 * passes * (shape.rows * weight_count(gates, shape) - begin)


def floor(machine: Machine, cell: str, mode: str, shape: Shape, dtype: str) -> Floor:
    """The floor of one pass, all threads sharing everything evenly.

    The recurrent weights are read once a step, the first one too: what is not finite among them
    shows. In training they are read once more by the backward's steps but the last.
    """
    training = mode == "training"
    scans = shape.L * shape.D
    inference, forward, backward = machine.pointwise[cell]
    units = scans * shape.rows * shape.H
    pointwise = units * 1e-9 * (forward + backward if training else inference) / machine.threads
    recurrent = BYTES[dtype] * GATES[cell] * shape.H**2
    reads = scans * (shape.T + (shape.T - 1 if training else 0))
    return Floor(
        operations=products(GATES[cell], mode, shape) / machine.peak(dtype) + pointwise,
        bytes=reads * recurrent / machine.bandwidth(recurrent / machine.threads),
    )
