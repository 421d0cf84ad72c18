"""What the tests of this folder share: the device, the paths, and how exact each dtype must be."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from cases import NN_CELLS, Case, Data, data_of, error, torch_nn
from torch import Tensor

from rnnext import ops, reference

DEVICE = os.environ.get("RNNEXT_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE.startswith("cuda")

# RNNEXT_CUDA_PATH forces one of them; the CPU kernels do not read it.
PATHS = ("steps", "grid", "cluster") if ON_CUDA else ("auto",)
paths = pytest.mark.parametrize("path", PATHS, indirect=True)

Run = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Math:
    """How products are computed, and how large the norm of an error may be beside the norm."""

    dtype: torch.dtype
    bound: float
    tf32: bool = False


MATHS = {
    "float64": Math(torch.float64, 1e-10),
    "float32": Math(torch.float32, 1e-5),
    "tf32": Math(torch.float32, 1e-3, tf32=True),
    "bfloat16": Math(torch.bfloat16, 1e-2),
    "float16": Math(torch.float16, 3e-3),
}
if not ON_CUDA:
    del MATHS["tf32"]
WIDE = ("float64", "float32")
LOW = ("bfloat16", "float16")

# Where a sum is near 0, rounding decides on which side of a kink it is.
KINKED = ("RNN_RELU", "LightGRU", "SLSTM")


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@functools.lru_cache(maxsize=64)
def expected(cell: str, case: Case, seeded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results of the reference on the CPU in float64, of data that are rounded to a dtype."""
    return data_for(cell, case, seeded).rounded(dtype).reference()


def data_for(cell: str, case: Case, seeded: bool = True) -> Data:
    """Data on the device; of a written cell, which is compiled. Without a seed nothing is drawn."""
    data = data_of(cell, case, DEVICE)
    if not seeded:
        data.seed = None
    return data


def check(
    cell: str, case: Case, math: str = "float32", run: Run = ops.rnn, seeded: bool = True
) -> None:
    """Every output and every gradient, by name, against the reference.

    Within the bound of the dtype; in single precision, and in half for cells of torch.nn, also
    within twice the error of a peer in the same dtype: cuDNN, or the reference itself.
    """
    how = MATHS[math]
    data = data_for(cell, case, seeded).rounded(how.dtype)
    with tf32_allowed(how.tf32):
        results = data.run(run, how.dtype)
    exact = expected(cell, case, seeded, how.dtype if math in LOW else torch.float64)
    errors = {name: error(results[name], exact[name]) for name in data.names}
    bounds = dict.fromkeys(data.names, how.bound)
    if any(cell.startswith(kinked) for kinked in KINKED) and (how.tf32 or math in LOW):
        bounds = {n: 20 * how.bound if n.startswith("d") else how.bound for n in data.names}
    if any(errors[name] > bounds[name] for name in data.names):
        theirs = peer_errors(data, how)
        bounds = {name: max(bounds[name], 2 * theirs.get(name, 0.0)) for name in data.names}
    wrong = {n: (errors[n], bounds[n]) for n in data.names if not errors[n] <= bounds[n]}
    assert not wrong, f"error, bound: {wrong}"


def peer_errors(data: Data, how: Math) -> dict[str, float]:
    """What the same dtype costs others, by name; nothing where there is no such peer."""
    in_nn = data.cell in NN_CELLS
    if how.dtype == torch.float64 or not (in_nn or how.dtype == torch.float32):
        return {}
    plain = data.without_dropout().rounded(how.dtype) if in_nn else data
    with tf32_allowed(how.tf32):
        results = plain.run(torch_nn if in_nn else reference.rnn, how.dtype)
    exact = plain.reference()
    return {name: error(results[name], exact[name]) for name in data.names}


def poison_allocator() -> None:
    """Fill the blocks that torch keeps for later calls: NaN in every dtype, -1 as an integer."""
    if not ON_CUDA:
        return
    sizes = [1 << k for k in range(9, 27)]
    blocks = [torch.full((n,), 0xFF, dtype=torch.uint8, device=DEVICE) for n in sizes * 3]
    torch.cuda.synchronize()
    del blocks


def assert_same_bits(result: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    different = [name for name, value in first.items() if not torch.equal(result[name], value)]
    assert not different


def wait_for(*streams: torch.cuda.Stream, seconds: float = 30.0) -> None:
    """Wait until streams are done; a kernel that never ends ends the session, which would hang."""
    end = time.monotonic() + seconds
    while not all(stream.query() for stream in streams):
        if time.monotonic() > end:
            pytest.exit(f"a kernel has been running for {seconds:.0f} s: a deadlock", 3)
        time.sleep(0.001)
