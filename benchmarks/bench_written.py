"""Cells written in Python beside the loop in PyTorch, one table for each cell, shape and mode."""

from functools import lru_cache

import pytest
from peers import Shape
from written import CELLS, SHAPES, Written

IMPLS = ("kernel", "loop")


@lru_cache(maxsize=1)
def checked(cell: type, mode: str, shape: Shape) -> tuple[Written, dict[str, float]]:
    """The problem that both are timed on, and their errors."""
    problem = Written(cell, shape)
    return problem, problem.check(mode, list(IMPLS))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def bench_written(benchmark, cell: type, mode: str, shape: Shape, impl: str) -> None:  # type: ignore[no-untyped-def]
    problem, errors = checked(cell, mode, shape)
    benchmark.extra_info["error"] = errors[impl]
    benchmark.group = f"{cell.__name__} {mode} {shape}"
    benchmark(problem.step(mode, impl))
