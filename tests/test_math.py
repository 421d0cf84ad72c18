"""The elementwise functions of the cells, held to a few units in the last place.

tanh and sigmoid are reached through the kernels; all functions are, for each instruction set that
this processor has, through a small library that is compiled here.
"""

import ast
import ctypes
import functools
import itertools
import math
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnext import ops


def tanh(x: Tensor) -> Tensor:
    """The kernels' tanh: one step of a cell of one unit with weights one and zero."""
    one = torch.ones(1, 1, dtype=x.dtype)
    y, _ = ops.rnn("RNN_TANH", x.view(1, -1, 1), [], [one, torch.zeros_like(one)])
    return y.view(-1)


def sigmoid(x: Tensor) -> Tensor:
    """The kernels' sigmoid: the update gate of a GRU with state one and candidate zero."""
    w_ih = torch.tensor([[0.0], [1.0], [0.0]], dtype=x.dtype)
    h0 = torch.ones(1, x.numel(), 1, dtype=x.dtype)
    y, _ = ops.rnn("GRU", x.view(1, -1, 1), [h0], [w_ih, torch.zeros_like(w_ih)])
    return y.view(-1)


def ulps(result: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of the result's dtype."""
    value = exact.abs().to(result.dtype)
    unit = (torch.nextafter(value, torch.full_like(value, float("inf"))) - value).to(exact.dtype)
    return ((result.to(exact.dtype) - exact).abs() / unit).max().item()


def arguments(dtype: torch.dtype, limit: float) -> Tensor:
    small = torch.logspace(-30, 0, 20001, dtype=torch.float64)
    wide = torch.linspace(0, limit, 200001, dtype=torch.float64)
    x = torch.cat([small, wide]).to(dtype)
    return torch.cat([-x, x])


@pytest.mark.parametrize("function", [tanh, sigmoid])
def test_float32_errors(function) -> None:  # type: ignore[no-untyped-def]
    x = arguments(torch.float32, 80.0)
    exact = getattr(torch, function.__name__)(x.double())
    assert ulps(function(x), exact) <= 4


@pytest.mark.parametrize("function", [tanh, sigmoid])
def test_float64_errors(function) -> None:  # type: ignore[no-untyped-def]
    # torch's own functions are within one unit of the exact values.
    x = arguments(torch.float64, 700.0)
    exact = getattr(torch, function.__name__)(x)
    assert ulps(function(x), exact) <= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signed_zeros_and_limits(dtype: torch.dtype) -> None:
    x = torch.tensor([-0.0, 0.0, 1e4, -1e4, float("inf"), float("-inf")], dtype=dtype)
    assert tanh(x).tolist() == [0, 0, 1, -1, 1, -1]
    assert sigmoid(x[2:4]).tolist() == [1, 0]
    assert tanh(torch.tensor([float("nan")], dtype=dtype)).isnan().all()


ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "avx512": (64, "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma"),
    "avx2": (32, "-mavx2 -mfma"),
    "baseline": (16, ""),
}
FROM_NUMPY = ["exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sqrt"]
UNARY = [*FROM_NUMPY, "sigmoid", "erf", "rsqrt", "abs", "relu", "sign"]
UNARY += ["floor", "ceil", "trunc", "round"]
BINARY = ["pow", "minimum", "maximum"]
EXPRESSIONS = {
    **{name: f"{name}(a)" for name in UNARY},
    **{name: f"{name}(a, b)" for name in BINARY},
    "lanes": "a + V::lanes()",
    # A function of a product: what the compiler contracts must not break it.
    **{f"{name}_of_product": f"{name}(a * b)" for name in ["sin", "log1p", "floor"]},
    "pow_of_products": "pow(a * b, a * a)",
    **{f"mask_{op}": f"select(mask_{op}(a >= b, a != V(1)), a, b)" for op in ["and", "or", "xor"]},
    "mask_not": "select(mask_not(a == b), a, b)",
}
DRIVER = """
#include "cpu/simd.h"
#include "cells/math.h"
#define PUBLIC extern "C" __attribute__((visibility("default")))
#define EXPORT(name, T, expression)                                         \\
  PUBLIC void name##_##T(const T* x, const T* y, T* out, int64_t n) {       \\
    using V = Vec<T>;                                                       \\
    for (int64_t i = 0; i < n; i += V::width) {                             \\
      [[maybe_unused]] const V a = V::load(x + i), b = V::load(y + i);      \\
      (expression).store(out + i);                                          \\
    }                                                                       \\
  }
PUBLIC bool supported() { return SUPPORTED; }
namespace rnnext::RNNEXT_ISA {
"""
INF, NAN = math.inf, math.nan
Array = np.ndarray


def cxx_flags() -> list[str]:
    """setup.py's: the flags decide what the compiler may contract and reorder."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CXX_FLAGS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no CXX_FLAGS")


class Library:
    """The functions, compiled for one instruction set."""

    def __init__(self, isa: str, folder: Path):
        candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        compiler = next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)
        if compiler is None:
            pytest.skip(f"no C++ compiler: looked for {', '.join(candidates)}")
        if isa != "baseline" and platform.machine() != "x86_64":
            pytest.skip(f"{isa} is an instruction set of x86-64; this is {platform.machine()}")
        width, targets = SETS[isa]
        features = [flag[2:] for flag in targets.split()]
        supported = " && ".join(f'__builtin_cpu_supports("{f}")' for f in features) or "true"
        source = folder / "driver.cpp"
        exports = [
            f"EXPORT({name}, {t}, ({expression}))"
            for t in ("float", "double")
            for name, expression in EXPRESSIONS.items()
        ]
        source.write_text("\n".join([DRIVER, *exports, "}"]), encoding="utf-8")
        library = folder / "driver.so"
        command = [*shlex.split(compiler), *cxx_flags(), *targets.split(), "-shared", "-fPIC"]
        command += [f"-DSUPPORTED={supported}", f"-DRNNEXT_ISA={isa}"]
        command += [f"-DRNNEXT_VECTOR_BYTES={width}", f"-I{ROOT / 'csrc'}", str(source)]
        done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.width = width
        self.functions = ctypes.CDLL(str(library))
        if not self.functions.supported():
            pytest.skip(f"this processor has no {isa}")

    def __call__(self, name: str, x: Array, y: Array | None = None) -> Array:
        """The function of each value (or pair of values), in their dtype."""
        size = -(-x.size // 16) * 16  # whole vectors
        padded = [np.resize(v, size) for v in (x, x if y is None else y)]
        out = np.empty(size, x.dtype)
        function = getattr(self.functions, f"{name}_{'float' if x.itemsize == 4 else 'double'}")
        function(*(ctypes.c_void_p(v.ctypes.data) for v in (*padded, out)), ctypes.c_int64(size))
        return out[: x.size]


@pytest.fixture(scope="module", params=SETS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(request.param, tmp_path_factory.mktemp(request.param))


both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def largest_error(result: Array, exact: Array) -> float:
    """In units in the last place, over the exact values that are normal numbers of the dtype."""
    info = np.finfo(result.dtype)
    normal = (abs(exact) >= info.tiny) & (abs(exact) <= info.max)
    result, exact = result[normal], exact[normal]
    unit = np.exp2(np.floor(np.log2(abs(exact))) - info.nmant)
    return float((abs(result - exact) / unit).max())


def logarithmic(low: float, high: float, count: int = 30000) -> Array:
    """Positive values whose logarithms to the base 2 are even."""
    return np.exp2(np.random.default_rng(0).uniform(low, high, count))


def both_signs(*values: Array) -> Array:
    joined = np.concatenate(values)
    return np.concatenate([joined, -joined])


def erf(x: Array) -> Array:
    # The C library's, within one unit of the exact values.
    return np.array([math.erf(value) for value in x.astype(np.float64)], np.longdouble)


EXACT: dict[str, Callable[..., Array]] = {
    **{name: getattr(np, name) for name in FROM_NUMPY},
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": erf,
    "pow": np.power,
}


@functools.cache
def points(name: str, dtype: type) -> tuple[list[Array], Array]:
    """Arguments all over the function's domain, and its exact values there."""
    info = np.finfo(dtype)
    lowest, highest = info.minexp, info.maxexp - 1e-6
    top = float(np.log(info.max))
    near_one = 1 + both_signs(logarithmic(-info.nmant - 2, -1))
    positive = np.concatenate([logarithmic(lowest, highest), near_one, np.linspace(0.3, 3, 20001)])
    x, y = positive, np.zeros(1)
    if name in ("exp", "expm1", "sigmoid"):
        x = np.concatenate([np.linspace(-top, top, 60001), both_signs(logarithmic(lowest, 6))])
    elif name == "log":
        x = np.concatenate([positive, logarithmic(lowest - info.nmant + 1, lowest)])
    elif name == "log1p":
        x = np.concatenate([positive - 1, both_signs(logarithmic(lowest, -1))])
    elif name in ("sin", "cos"):
        limit = 1e5 if dtype is np.float32 else 1e9
        multiples = np.random.default_rng(0).integers(0, int(limit / 2), 60000)
        multiples[:20000] = np.arange(20000)
        near_zeros = (multiples * np.longdouble(np.pi) / 2).astype(np.float64)
        x = both_signs(logarithmic(lowest, np.log2(limit)), near_zeros, np.linspace(0, 20, 20001))
        x = x[abs(x) < limit]
    elif name == "tanh":
        x = both_signs(logarithmic(lowest, 6))
    elif name == "erf":
        x = both_signs(logarithmic(lowest, 3, 5000), np.linspace(0, 6.5, 10001))
    elif name == "pow":
        x = np.concatenate([x, np.linspace(1e-3, 20, 30001)])
        y = np.random.default_rng(1).uniform(-top, top, x.size) / np.log(np.where(x == 1, 2, x))
        y[-30001:] = np.linspace(-4, 4, 30001)
    arguments = [x.astype(dtype), *([y.astype(dtype)] if name == "pow" else [])]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        return arguments, EXACT[name](*(v.astype(np.longdouble) for v in arguments))


@both_dtypes
@pytest.mark.parametrize("name", EXACT)
def test_largest_error(library: Library, name: str, dtype: type) -> None:
    arguments, exact = points(name, dtype)
    assert largest_error(library(name, *arguments), exact) <= (4 if dtype is np.float32 else 5)


def same_as_torch(name: str, result: Array, expected: Tensor) -> None:
    """Equal, but for rounding and results below the normal numbers; zeros have their sign."""
    tiny, values = np.finfo(result.dtype).tiny, torch.from_numpy(result)
    torch.testing.assert_close(values, expected, rtol=2e-6, atol=tiny, equal_nan=True)
    zero = expected == 0
    if name not in ("minimum", "maximum"):  # of 0 and -0, either
        assert torch.equal(values.signbit()[zero], expected.signbit()[zero])


SPECIAL = [0.0, 1e-42, 1e-30, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 87.0, 88.5, 88.7, 89.0, 709.5]
SPECIAL += [710.0, 4194303.5, 8388607.5, 8388609.0, 16777215.0, 2.0**52 - 0.5, 1e30, 3e38, INF, NAN]


@both_dtypes
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_special_values(library: Library, name: str, dtype: type) -> None:
    values = [sign * value for value in SPECIAL for sign in (1, -1)]
    if name in ("sin", "cos"):
        values = [v for v in values if not 1e5 < abs(v) < INF]
    pairs = values if name in UNARY else list(itertools.product(values, values))
    arguments = list(np.array(pairs, dtype).reshape(len(pairs), -1).T.copy())
    expected = getattr(torch, name)(*map(torch.from_numpy, arguments))
    same_as_torch(name, library(name, *arguments), expected)


@both_dtypes
def test_sine_and_cosine_have_no_value_far_out(library: Library, dtype: type) -> None:
    x = np.array([1e10, -1e10, 1e30, INF], dtype)
    assert np.isnan(library("sin", x)).all()
    assert np.isnan(library("cos", x)).all()


@both_dtypes
@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round"])
def test_rounding_is_exact(library: Library, name: str, dtype: type) -> None:
    x = both_signs(logarithmic(-5, 60), np.arange(0, 1000, 0.5)).astype(dtype)
    expected = getattr(torch, name)(torch.from_numpy(x)).numpy()
    assert (library(name, x) == expected).all()


@both_dtypes
def test_functions_of_products(library: Library, dtype: type) -> None:
    x, y = np.random.default_rng(0).uniform(-0.95, 0.95, (2, 30000)).astype(dtype)
    eps = np.finfo(dtype).eps
    product = x.astype(np.longdouble) * y
    for name, exact in (("sin", np.sin(product)), ("log1p", np.log1p(product))):
        assert np.allclose(library(f"{name}_of_product", x, y), exact, rtol=0, atol=10 * eps)
    x, y = abs(x) * 2, abs(y)
    exact = np.power(abs(product) * 2, np.square(x.astype(np.longdouble)))
    assert np.allclose(library("pow_of_products", x, y), exact, rtol=10 * eps, atol=0)
    result = library("floor_of_product", 20 * x, y)
    assert ((result <= 20 * x * y) & (20 * x * y < result + 1)).all()


@both_dtypes
def test_lanes_comparisons_and_logic(library: Library, dtype: type) -> None:
    zeros = np.zeros(16, dtype)
    count = library.width // zeros.itemsize
    assert library("lanes", zeros).tolist() == [k % count for k in range(16)]
    x, y = np.array(list(itertools.product([-1, 0, 1, 2, NAN], repeat=2)), dtype).T.copy()
    for name in ("and", "or", "xor"):
        mask = getattr(np, f"logical_{name}")(x >= y, x != 1)
        assert np.array_equal(library(f"mask_{name}", x, y), np.where(mask, x, y), equal_nan=True)
    expected = np.where(~(x == y), x, y)
    assert np.array_equal(library("mask_not", x, y), expected, equal_nan=True)
