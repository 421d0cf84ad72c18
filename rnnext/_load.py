"""Loads the kernels, which registers the ops with torch, and says plainly why when it cannot."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

# Also right where setuptools and ninja are missing or old, and for uv, whose isolated builds
# cannot see the torch that is installed.
BUILD_COMMAND = (
    'pip install "setuptools>=77.0.3" ninja && pip install --no-build-isolation --no-deps -e .'
)


def check_torch() -> None:
    """Compare the torch that is installed with the one that the kernels were built against.

    ATen has no stable ABI from one minor version to the next: a library that loads may crash later.
    CUDA's is stable within a major version. Kernels for the CPU alone fit a torch with CUDA, too.

    Raises:
        ImportError: nothing was built, or minor versions of torch or major ones of CUDA differ.
    """
    try:
        built = importlib.import_module("rnnext._build_info").TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError(
            f"rnnext's kernels are not built. Build them in its source folder:\n    {BUILD_COMMAND}"
        ) from None
    if built.split(".")[:2] != torch.__version__.split(".")[:2]:
        problem = f"against torch {built}, but torch {torch.__version__} is installed"
    elif (cuda := cuda_version()) and _major(cuda) != _major(torch.version.cuda):
        theirs = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        problem = f"with kernels for CUDA {cuda}, but torch {torch.__version__} is {theirs}"
    else:
        return
    raise ImportError(
        f"rnnext was built {problem}. Rebuild it in its source folder:\n    {BUILD_COMMAND}"
    )


def _major(version: str | None) -> str | None:
    return version and version.split(".")[0]


def cuda_version() -> str | None:
    """The version of CUDA that the kernels were built with; None: they are for the CPU alone."""
    info = importlib.import_module("rnnext._build_info")
    return getattr(info, "CUDA_VERSION", None)  # earlier builds do not say


def library_path() -> Path:
    """The ops library that was built for this Python.

    Raises:
        ImportError: there is none.
    """
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_ops{suffix}"
        if path.exists():
            return path
    raise ImportError(
        f"rnnext's kernels are not built for this Python: {folder} has no "
        f"_ops{EXTENSION_SUFFIXES[0]}. Build them in its source folder:\n    {BUILD_COMMAND}"
    )


def load_library() -> None:
    """Load the kernels.

    Raises:
        ImportError: they are not built, were built against another torch, or do not load; the
            message ends in the command that mends it.
    """
    check_torch()
    try:
        torch.ops.load_library(str(library_path()))
    except OSError as error:
        raise ImportError(
            f"rnnext's kernels do not load: {error}. Rebuild them in its source folder:\n"
            f"    {BUILD_COMMAND}"
        ) from None


def build_info() -> dict[str, object]:
    """How the kernels were built, and which instruction set of theirs this processor gets.

    Returns:
        `torch_version`, `compiler`, `cxx_standard`, `cxx_flags`, `openmp` (the version of the
        standard, or None), `instruction_sets` (compiled in, best first), `instruction_set`
        (in use), `cuda_version` (None: without CUDA kernels), `cuda_architectures` (in the words of
        TORCH_CUDA_ARCH_LIST).
    """
    build = importlib.import_module("rnnext._build")
    facts = {name: value for name, value in vars(build).items() if not name.startswith("_")}
    facts["instruction_sets"] = torch.ops.rnnext.instruction_sets()
    facts["instruction_set"] = torch.ops.rnnext.instruction_set()
    facts["cuda_version"] = cuda_version()
    info = importlib.import_module("rnnext._build_info")
    facts["cuda_architectures"] = getattr(info, "CUDA_ARCHITECTURES", "")
    return facts
