"""The tests of the CUDA kernels: without a GPU each is skipped, here and nowhere else.

RNNEXT_TEST_DEVICE=cpu runs what is not about CUDA itself on the CPU kernels, to test the tests.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

# Before CUDA is initialised: what deterministic mode, which the tests poison memory by, asks for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from on_device import DEVICE, ON_CUDA, poison_allocator, tf32_allowed

HERE = Path(__file__).parent
FORCED = "RNNEXT_CUDA_PATH"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda_only: about CUDA itself, whatever the device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = ON_CUDA and not torch.cuda.is_available()
    for item in items:
        if HERE not in item.path.parents:
            continue
        # To fall back to the reference would pass every comparison with it.
        item.add_marker(pytest.mark.filterwarnings("error:rnnext has no kernel"))
        item.add_marker(pytest.mark.filterwarnings("ignore:RNN module weights are not part"))
        if lacking or (not ON_CUDA and item.get_closest_marker("cuda_only")):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A call that the forced path refuses is skipped with its words: test_gpu_paths.py says which
    calls it must take.
    """
    try:
        return (yield)
    except RuntimeError as error:
        forced = os.environ.get(FORCED, "auto")
        if "path" in pyfuncitem.fixturenames and f"{FORCED}={forced}" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path that every call in the test takes."""
    monkeypatch.setenv(FORCED, request.param)
    return request.param


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with tf32_allowed(False):
        yield


@pytest.fixture
def poisoned_blocks() -> None:
    """What the caching allocator hands out next holds NaN."""
    poison_allocator()
