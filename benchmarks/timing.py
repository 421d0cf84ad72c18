"""Steps timed in turn in one process, so that other work on the machine hits all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

Clock = Callable[[Callable[[], Any]], float]


def wall(step: Callable[[], Any]) -> float:
    """Seconds of a run of a step that is done when it returns."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turn(
    steps: Mapping[str, Callable[[], Any]],
    seconds: float,
    rounds: int,
    guests: Collection[str] = (),
    clock: Clock = wall,
) -> dict[str, list[float]]:
    """Seconds of each run of each step: for so many seconds, but at least so many rounds.

    Each round has an order of its own: a step finds the caches, and the threads, awake or asleep,
    as the one before it left them, and each comes after each other one as often.

    Guests are much slower than the others: after 3 rounds they sit out while they have had more
    than their share of the time, so that the others keep theirs.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        clock(step)
        clock(step)
    begin = time.perf_counter()
    hosts = [times[name] for name in steps if name not in guests]
    order = list(steps.items())
    shuffle = random.Random(0).shuffle
    while time.perf_counter() < begin + seconds or min(map(len, hosts)) < rounds:
        shuffle(order)
        for name, step in order:
            start = time.perf_counter()
            spent = sum(times[name])
            if name in guests and len(times[name]) >= 3 and spent > (start - begin) / len(steps):
                continue
            times[name].append(clock(step))
    return times
