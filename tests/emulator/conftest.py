"""The tests here run the CUDA backend on the emulator (emulator.h), in place of the CPU's kernels.

In a process of their own, since the ops are then others: `pytest tests/emulator`, which
tests/test_emulator.py does.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import emulated

# Importing rnnext registers the ops, whose implementations are then replaced.
from rnnext.codegen import cuda

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the CPU's ops, that they are replaced
    torch.ops.load_library(str(emulated.library()))
cuda.compile = emulated.cell


@pytest.fixture(autouse=True)
def device() -> None:
    torch.ops.rnnext_emulator.set_device(132, emulated.SHARED, 16, 1)


@pytest.fixture(params=["steps", "grid", "cluster"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RNNEXT_CUDA_PATH", request.param)
    return str(request.param)
