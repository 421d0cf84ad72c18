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

    Raises:
        ImportError: nothing was built, or their minor versions differ.
    """
    try:
        built = importlib.import_module("rnnext._build_info").TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError(
            f"rnnext's kernels are not built. Build them in its source folder:\n    {BUILD_COMMAND}"
        ) from None
    if built.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ImportError(
            f"rnnext was built against torch {built}, but torch {torch.__version__} is installed. "
            f"Rebuild it in its source folder:\n    {BUILD_COMMAND}"
        )


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
        (in use).
    """
    build = importlib.import_module("rnnext._build")
    facts = {name: value for name, value in vars(build).items() if not name.startswith("_")}
    facts["instruction_sets"] = torch.ops.rnnext.instruction_sets()
    facts["instruction_set"] = torch.ops.rnnext.instruction_set()
    return facts
