"""Time on a GPU: bursts between two events, and the same call out of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Step = Callable[[], Any]

LEAST = 3e-3  # seconds of a burst, so that neither the events nor the first launch counts
MOST = 50  # calls in a burst


class Bursts:
    """A clock for `timing.in_turn`: seconds of a call, the mean of a burst of calls.

    Within a burst the host runs ahead of the device, as in a training loop that reads no result: a
    call costs what device or host takes, whichever is more.
    """

    def __init__(self) -> None:
        self.counts: dict[Step, int] = {}

    def __call__(self, step: Step) -> float:
        count = self.counts.get(step, 1)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        seconds = 1e-3 * begin.elapsed_time(end) / count
        self.counts[step] = min(max(int(LEAST / seconds), 1), MOST)
        return seconds


def captured(step: Step) -> Step:
    """The call out of a CUDA graph, so without what the host does for it; gives its results.

    Raises:
        RuntimeError: it can't be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """In cuBLAS and cuDNN, which have a switch each."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
