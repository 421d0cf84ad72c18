"""Steps timed in turn in one process, A B A B ..., so that other work on the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(
    steps: Mapping[str, Callable[[], Any]], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each run of each step: for so many seconds, but at least so many rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < rounds:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times
