"""What a figure depends on: processor, threads, versions, date."""

from __future__ import annotations

import datetime
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch

import rnnext


def about() -> dict[str, Any]:
    """Facts for the head of a result file."""
    return {**versions(), "torch_matmul_gflops_per_second": matmul_gflops()}


def versions() -> dict[str, Any]:
    """Those facts that take no time."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rnnext": rnnext.__version__,
        "build": rnnext.build_info(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, with its family and model: the name alone can be vague."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name", platform.processor())
    family, model = facts.get("cpu family"), facts.get("model")
    return f"{name} (family {family}, model {model})" if family else name


def matmul_gflops(seconds: float = 1.0) -> float:
    """What torch's float32 matrix product reaches here at best, on the threads in use."""
    a = torch.randn(1536, 1536)
    best = math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1536**3 / best / 1e9
