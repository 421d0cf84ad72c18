"""Layers beside torch.nn's, one table for each cell, shape and mode.

pytest benchmarks --benchmark-only
"""

from functools import lru_cache

import pytest
from peers import CELLS, IMPLS, MODES, SHAPES, Problem, Shape, check


@lru_cache(maxsize=1)
def checked(cell: str, mode: str, shape: Shape) -> tuple[Problem, dict[str, float]]:
    """The problem that all implementations are timed on, and their errors."""
    problem = Problem(cell, shape)
    return problem, check(problem, mode)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def bench_layer(benchmark, cell: str, mode: str, shape: Shape, impl: str) -> None:  # type: ignore[no-untyped-def]
    if benchmark.disabled and shape.L * shape.D * shape.rows * shape.H**2 > 2.6e8:
        pytest.skip("a large shape: seconds for its float64 result; run with --benchmark-only")
    problem, errors = checked(cell, mode, shape)
    benchmark.extra_info["error"] = errors[impl]
    benchmark.group = f"{cell} {mode} {shape}"
    benchmark(problem.step(mode, impl))
