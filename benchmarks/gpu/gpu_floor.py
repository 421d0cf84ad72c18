"""The least time that a GPU can take for a pass of a layer, by figures measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cuda_timing import tf32
from peers import Shape
from roofline import products, weight_count
from timing import Clock, in_turn

DTYPES = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "tf32": torch.float32,
}

# A flag through L2, one way, as published for an H100; assumptions.py measures it. A step needs
# what other SMs made of the one before, so it can't be shorter.
HOP = 0.16e-6

TERMS = (
    "The **floor** is the largest of three. Operations: those of the products, at the rate of a "
    "large product in the same math. Bytes: each weight, input and output moved once (in training "
    "gradients too) at the rate of a large copy. Steps: one hand-off between SMs through L2, "
    f"{1e6 * HOP:.2f} us as published, for each step that waits for another (T + L - 1 of them, in "
    "training twice)."
)


@dataclass(frozen=True)
class Chip:
    """Rates of a device.

    Attributes:
        teraflops: of a large product, by math.
        gigabytes: a second, read and written, of a large copy.
    """

    teraflops: dict[str, float]
    gigabytes: float


@dataclass(frozen=True)
class GpuFloor:
    """Seconds."""

    operations: float
    bytes: float
    steps: float

    @property
    def seconds(self) -> float:
        return max(self.operations, self.bytes, self.steps)

    @property
    def bound(self) -> str:
        return max(("operations", "bytes", "steps"), key=lambda name: getattr(self, name))


def measure_chip(device: torch.device, clock: Clock, maths: list[str]) -> Chip:
    """Takes a fraction of a second."""
    size, count = (8192, 2**28) if device.type == "cuda" else (512, 2**22)
    rates = {}
    for math in maths:
        # Random numbers: zeros would be faster.
        a, b = torch.randn(2, size, size, device=device).to(DTYPES[math])
        with tf32(math == "tf32"):
            best = min(
                in_turn({"product": lambda a=a, b=b: a @ b}, 0.05, 3, clock=clock)["product"]
            )
        rates[math] = 2e-12 * size**3 / best
    source = torch.empty(count, device=device)
    target = torch.empty_like(source)
    best = min(in_turn({"copy": lambda: target.copy_(source)}, 0.05, 3, clock=clock)["copy"])
    return Chip(rates, 2e-9 * source.nbytes / best)


def gpu_floor(chip: Chip, gates: int, mode: str, shape: Shape, math: str) -> GpuFloor:
    """The floor of one pass; `TERMS` says it in words."""
    training = mode == "training"
    passes = 2 if training else 1
    width = DTYPES[math].itemsize
    moved = weight_count(gates, shape) + shape.rows * (shape.H + shape.D * shape.H)
    return GpuFloor(
        operations=products(gates, mode, shape) / (1e12 * chip.teraflops[math]),
        bytes=passes * width * moved / (1e9 * chip.gigabytes),
        steps=passes * (shape.T + shape.L - 1) * HOP,
    )
