"""Fixtures for all tests."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A run makes the same examples as the last one; a nightly one makes other ones, and more. Nothing
# is stored: what fails is printed with what it takes to repeat it.
options = {"deadline": None, "database": None, "print_blob": True}
settings.register_profile("normal", max_examples=200, derandomize=True, **options)
settings.register_profile("nightly", max_examples=2000, **options)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))


def pytest_configure(config: pytest.Config) -> None:
    """Each cell is compiled once a session, whatever the user's own cache holds.

    RNNEXT_CACHE is taken if it is set: what is there from one session to the next saves time. Not a
    fixture, since modules that declare cells look into the cache when they are imported.
    """
    if not os.environ.get("RNNEXT_CACHE"):
        folder = tempfile.TemporaryDirectory(prefix="rnnext-cells-")
        os.environ["RNNEXT_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("RNNEXT_CACHE"))


@pytest.fixture
def device() -> str:
    """Where a test runs. tests/gpu collects some of these tests once more, for another device."""
    return "cpu"


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every uninitialised tensor, the kernels' own buffers too, begins as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """For many small tests: on a busy machine, threads that wait for each other take much time."""
    torch.set_num_threads(1)


@pytest.fixture
def inductor_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch compiles in C++ is kept for this session alone."""
    folder = tmp_path_factory.getbasetemp() / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
