"""The CUDA backend, run on an emulator of the device: tests/emulator, in a process of its own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "emulator"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator is for x86-64")
@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.glob("test_*.py")))
def test_the_cuda_backend_on_an_emulator(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
