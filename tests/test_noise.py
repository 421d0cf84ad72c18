"""Random numbers: the generator against its publication, the kinds of noise, dropout."""

import math

import pytest
import torch
from torch import Tensor

from rnnext.noise import (
    Bernoulli,
    Dropout,
    Noise,
    Normal,
    Uniform,
    _philox,
    apply_dropout,
    noise_values,
    random_words,
)

# Published with Random123: counter, key and result of Philox4x32-10.
PHILOX = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    given = ([torch.tensor(int(word, 16)) for word in text.split()] for text in (counter, key))
    out = _philox(*given)
    assert " ".join(f"{int(word):08x}" for word in out) == expected


def test_random_words_are_philox_at_the_counter_of_their_index() -> None:
    seed, layer = 0x0123456789ABCDEF, 3
    bits = random_words(torch.tensor([seed]), layer, 42)
    key = [torch.tensor(0x89ABCDEF), torch.tensor(0x01234567)]
    for i in range(42):
        counter = [torch.tensor(word) for word in (i // 4, 0, layer, 0)]
        assert bits[i] == _philox(counter, key)[i % 4]


def test_random_words_are_uniform_and_independent() -> None:
    count = 40_000
    streams = [random_words(torch.tensor(s), k, count) for s, k in ((1, 0), (1, 1), (2, 0))]
    units = torch.stack(streams).double() / 2**32
    bins = torch.stack([torch.histc(u, 64, 0, 1) for u in units])
    chi2 = ((bins - count / 64) ** 2 / (count / 64)).sum(1)
    # 63 degrees of freedom: mean 63, variance 126.
    assert ((chi2 - 63).abs() < 5 * math.sqrt(126)).all()
    shifted = torch.cat([units, units[:1].roll(1), units[:1].roll(4)])
    correlation = torch.corrcoef(shifted) - torch.eye(5)
    assert correlation.abs().max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_it(p: float) -> None:
    x = torch.ones(300, 100, dtype=torch.float64)
    y = apply_dropout(x, p, torch.tensor(5), 0)
    kept = y != 0
    assert (y[kept] == 1 / (1 - p)).all()
    for share, count in ((kept.double().mean(), 30_000), (kept.double().mean(1), 100)):
        assert ((share - (1 - p)).abs() < 5 * math.sqrt(p * (1 - p) / count)).all()


def test_dropout_of_one_gives_zeros_and_zero_gradients() -> None:
    x = torch.tensor([[math.inf, math.nan, 1.0]], requires_grad=True)
    y = apply_dropout(x, 1.0, torch.tensor(5), 0)
    y.sum().backward()
    assert (y == 0).all()
    assert (x.grad == 0).all()


NOISES = [
    Dropout(0.3),
    Bernoulli(0.3),
    Normal(2.0, 3.0),
    Uniform(1 / 8, 1 / 3),
]


def draw(noise: Noise, rows: int, width: int, number: int = 0, place: int = 0) -> Tensor:
    like = torch.empty(0, dtype=torch.float64)
    return noise_values(noise, number, torch.tensor(2**40 + 5), place, rows, width, like)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_noise_has_its_distribution_and_depends_on_its_place_alone(noise: Noise) -> None:
    values = draw(noise, 400, 101)
    variance = {
        "Dropout": 0.3 / 0.7,
        "Bernoulli": 0.3 * 0.7,
        "Normal": 9.0,
        "Uniform": (1 / 3 - 1 / 8) ** 2 / 12,
    }[type(noise).__name__]
    error = math.sqrt(variance / values.numel())
    assert abs(values.mean() - noise.expectation) < 5 * error
    assert abs(values.var() / variance - 1) < 0.05
    assert torch.equal(draw(noise, 7, 101), values[:7])
    for other in (draw(noise, 400, 101, number=1), draw(noise, 400, 101, place=1)):
        assert not torch.equal(other, values)
        assert torch.corrcoef(torch.stack((values.flatten(), other.flatten())))[0, 1].abs() < 0.03
    within = torch.corrcoef(torch.stack((values.flatten()[:-1], values.flatten()[1:])))
    assert within[0, 1].abs() < 0.03
    expected = noise_values(noise, 0, None, 0, 3, 4, values)
    assert torch.equal(expected, torch.full((3, 4), noise.expectation, dtype=torch.float64))


def test_noise_is_made_of_the_words_of_its_place() -> None:
    words = random_words(torch.tensor(2**40 + 5), 3, 15, use=2).tolist()
    values = {type(n): draw(n, 3, 5, number=1, place=3).flatten().tolist() for n in NOISES}
    threshold = int(0.3 * 2**32)
    for i in range(14):
        assert values[Bernoulli][i] == (words[i] < threshold)
        assert values[Dropout][i] == (1 / 0.7 if words[i] >= threshold else 0)
        assert values[Uniform][i] == 1 / 8 + (1 / 3 - 1 / 8) * ((words[i] >> 8) * 2**-24)
        even, odd = words[i // 2 * 2], words[i // 2 * 2 + 1]
        radius = math.sqrt(-2 * math.log(((even >> 8) + 1) * 2**-24))
        angle = 2 * math.pi * (odd >> 8) * 2**-24
        normal = 2 + 3 * radius * (math.sin(angle) if i % 2 else math.cos(angle))
        assert values[Normal][i] == pytest.approx(normal, rel=1e-13)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_noise_that_is_certain(p: float) -> None:
    assert (draw(Dropout(p), 20, 30) == 1 - p).all()
    assert (draw(Bernoulli(p), 20, 30) == p).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_noise_in_other_dtypes_is_rounded(noise: Noise, dtype: torch.dtype) -> None:
    like = torch.empty(0, dtype=dtype)
    values = noise_values(noise, 0, torch.tensor(2**40 + 5), 0, 30, 30, like)
    assert values.dtype == dtype
    eps = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(values.double(), draw(noise, 30, 30), rtol=eps, atol=10 * eps)
