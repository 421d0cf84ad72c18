"""Layers beside torch.nn's, one table for each cell, shape and mode.

pytest benchmarks --benchmark-only
"""

from functools import lru_cache

import pytest
from peers import CELLS, IMPLS, SHAPES, Problem, Shape, check


@lru_cache(maxsize=1)
def checked(cell: str, mode: str, shape: Shape) -> tuple[Problem, dict[str, float]]:
    """The problem that all implementations are timed on, and their errors."""
    problem = Problem(cell, shape)
    return problem, check(problem, mode)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("cell", CELLS)
def bench_layer(benchmark, cell: str, mode: str, shape: Shape, impl: str) -> None:  # type: ignore[no-untyped-def]
    problem, errors = checked(cell, mode, shape)
    benchmark.extra_info["error"] = errors[impl]
    benchmark.group = f"{cell} {mode} {shape}"
    benchmark(problem.step(mode, impl))
