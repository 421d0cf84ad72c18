"""Random numbers of layers and cells: the kinds that a cell declares, and the numbers themselves.

Every number depends on the seed of the call and on its own place alone, so that kernels and
reference draw the same in any order and with any number of threads.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Bernoulli",
    "Dropout",
    "Noise",
    "Normal",
    "Uniform",
    "apply_dropout",
    "noise_values",
    "random_words",
]

Size: TypeAlias = str | int
"""A width: "hidden_size", the name of another size, or 1 (one value a row)."""

Constant: TypeAlias = float | int | bool | str


@dataclass(frozen=True)
class Noise:
    """Random numbers that a layer draws for its cell in training, by the seed of the call.

    Its kinds are `Dropout`, `Bernoulli`, `Normal` and `Uniform`; their arguments are numbers, or
    names of the cell's constants. In eval mode every value is the kind's expectation.

    Args:
        size: how many values a row has.
        per: "step": new ones at each step; "sequence": one draw for all steps of a sequence.
    """

    size: Size = field(default="hidden_size", kw_only=True)
    per: str = field(default="step", kw_only=True)

    @classmethod
    def arguments(cls) -> tuple[str, ...]:
        """The names of the numbers that a kind takes: p, or mean and std, or low and high."""
        return tuple(f.name for f in fields(cls) if f.name not in ("size", "per"))

    @property
    def a(self) -> float:
        """The first number."""
        return getattr(self, self.arguments()[0])

    @property
    def b(self) -> float:
        """The second number; 0 for a kind that has one."""
        names = self.arguments()
        return getattr(self, names[1]) if len(names) > 1 else 0.0

    @property
    def expectation(self) -> float:
        """The mean of the values."""
        raise NotImplementedError

    def problem(self) -> str | None:
        """What is wrong with the numbers, if anything."""
        raise NotImplementedError

    def resolve(self, constants: Mapping[str, Constant]) -> Self:
        """The same noise with constants' values instead of their names."""
        found: dict[str, Any] = {}
        for name in self.arguments():
            value = getattr(self, name)
            if isinstance(value, str):
                if value not in constants:
                    raise ValueError(
                        f"{name}={value!r}: there is no such constant, "
                        f"expected a number or one of {listed(constants)}"
                    )
                value = constants[value]
            if not is_number(value) or not math.isfinite(value):
                raise TypeError(f"{name}={value!r}: expected a finite number or a constant's name")
            found[name] = float(value)
        resolved = replace(self, **found)
        if problem := resolved.problem():
            raise ValueError(problem)
        return resolved


@dataclass(frozen=True)
class Dropout(Noise):
    """Noise: 0 with probability p, else 1 / (1 - p), so that its mean is 1.

    Example:
        >>> Dropout(0.25, per="sequence").expectation
        1.0
    """

    p: Any

    @property
    def expectation(self) -> float:
        return 1.0

    def problem(self) -> str | None:
        return _probability(self.p)


@dataclass(frozen=True)
class Bernoulli(Noise):
    """Noise: 1 with probability p, else 0.

    Example:
        >>> Bernoulli("zoneout").resolve({"zoneout": 0.1}).expectation
        0.1
    """

    p: Any

    @property
    def expectation(self) -> float:
        return self.p

    def problem(self) -> str | None:
        return _probability(self.p)


@dataclass(frozen=True)
class Normal(Noise):
    """Noise: normally distributed.

    Example:
        >>> Normal(0.0, 1.0, size=1).expectation
        0.0
    """

    mean: Any = 0.0
    std: Any = 1.0

    @property
    def expectation(self) -> float:
        return self.mean

    def problem(self) -> str | None:
        return f"std={self.std}: expected at least 0" if self.std < 0 else None


@dataclass(frozen=True)
class Uniform(Noise):
    """Noise: uniform from low up to high.

    Example:
        >>> Uniform(1 / 8, 1 / 3).expectation
        0.22916666666666666
    """

    low: Any = 0.0
    high: Any = 1.0

    @property
    def expectation(self) -> float:
        return (self.low + self.high) / 2

    def problem(self) -> str | None:
        if self.low > self.high:
            return f"low={self.low}, high={self.high}: expected low to be at most high"
        return None


def is_number(value: object) -> bool:
    """Whether a value is an int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _probability(p: float) -> str | None:
    return None if 0 <= p <= 1 else f"p={p}: expected a probability, 0 to 1"


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them."""
    return ", ".join(names) or "none"


DROP_CONNECT = 8
"""The number of the noise of the recurrent weights, after those that a cell can have."""

_WORD = 0xFFFFFFFF


def _philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): counter of four words, key of two -> four.

    Words of 32 bits are int64 tensors that broadcast. A product of two may wrap int64; its 64 bits
    are right all the same, and the masks remove the sign that the shift brings in.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = ((a >> 32) & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def random_words(
    seed: Tensor, place: int, count: int, device: torch.device | None = None, use: int = 0
) -> Tensor:
    """The random words of a layer: int64 [count], each in 0 .. 2**32 - 1.

    Word number `index` depends on (seed, use, place, index) alone:

        philox(counter = (index//4 mod 2**32, index//4 >> 32, place, use),
               key = (seed mod 2**32, seed >> 32))[index % 4]

    Args:
        seed: int64 tensor of one element.
        place: of dropout between layers, the layer (0 for the output of the first); of a cell's
            noise, layer * D + direction.
        count: number of words.
        device: where to compute; default that of the seed.
        use: 0 for dropout between layers, 1 + k for the cell's noise number k, or for k = 8 for
            that of the recurrent weights.

    Example:
        >>> [hex(word) for word in random_words(torch.tensor(0), 0, 4).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    seed = seed.reshape(()).to(device=device)
    block = torch.arange((count + 3) // 4, device=seed.device)
    zero = torch.zeros_like(block)
    counter = (block & _WORD, block >> 32, zero + place, zero + use)
    words = _philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return torch.stack(words, -1).flatten()[:count]


def apply_dropout(x: Tensor, p: float, seed: Tensor, layer: int) -> Tensor:
    """Zero elements of x [rows, width] with probability p and scale the others by 1 / (1 - p).

    Srivastava et al. 2014. The element at (row, column) is kept iff its word in `random_words`,
    number row * width + column, is at least floor(p * 2**32); p = 1 gives zeros.

    Example:
        >>> apply_dropout(torch.ones(2, 3), 0.5, torch.tensor(5), 0)
        tensor([[2., 0., 2.],
                [2., 0., 0.]])
    """
    keep = random_words(seed, layer, x.numel(), x.device) >= int(p * 2**32)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(keep.view(x.shape), x * scale, 0.0)


def noise_values(
    noise: Noise, number: int, seed: Tensor | None, place: int, rows: int, width: int, like: Tensor
) -> Tensor:
    """The values of a cell's noise: [rows, width] with the dtype and device of `like`.

    The element at (row, unit) is a function of the word i = row * width + unit of `random_words`:
    dropout and Bernoulli compare it with floor(p * 2**32), a uniform one is made of its 24 leading
    bits. Normal ones come in pairs from the words of a pair (Box and Muller 1958): with u1 in
    (0, 1] of the even word and u2 in [0, 1) of the odd one,

        sqrt(-2 log u1) * cos(2 pi u2)  for even i,    sqrt(-2 log u1) * sin(2 pi u2)  for odd i.

    Args:
        noise: its numbers resolved.
        number: its place among the cell's noise.
        seed: int64 tensor of one element; None: every value is the expectation.
        place: layer * D + direction.
        rows: packed rows, or with per="sequence" rows of the batch.
        width: values of a row.
        like: a tensor of the dtype and device wanted.

    Example:
        >>> noise_values(Bernoulli(0.5), 0, torch.tensor(5), 0, 2, 3, torch.empty(0))
        tensor([[1., 1., 0.],
                [1., 0., 0.]])
    """
    if seed is None:
        return like.new_full((1, 1), noise.expectation).expand(rows, width)
    count = rows * width
    words = random_words(seed, place, (count + 1) // 2 * 2, like.device, use=1 + number)
    if isinstance(noise, (Dropout, Bernoulli)):
        below = words[:count] < min(int(noise.p * 2**32), _WORD)
        if isinstance(noise, Bernoulli):
            values = below.to(like.dtype)
        else:
            scale = 1 / (1 - noise.p) if noise.p < 1 else 0.0
            values = torch.where(below, 0.0, like.new_full((), scale))
        return values.view(rows, width)
    # 24 bits are exact in float32 and wider.
    units = (words >> 8).to(torch.promote_types(like.dtype, torch.float32)) * 2.0**-24
    if isinstance(noise, Uniform):
        values = noise.low + (noise.high - noise.low) * units[:count]
    elif isinstance(noise, Normal):
        even, odd = units.view(-1, 2).unbind(1)
        radius, angle = (-2 * (even + 2.0**-24).log()).sqrt(), 2 * math.pi * odd
        pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
        values = noise.mean + noise.std * pairs.flatten()[:count]
    else:
        raise TypeError(f"got {noise!r}: expected Dropout, Bernoulli, Normal or Uniform")
    return values.view(rows, width).to(like.dtype)
