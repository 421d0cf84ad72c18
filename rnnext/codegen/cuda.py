"""Compile written cells for the GPUs of this machine: each when it first runs on one.

A cell's folder in the cache gets a further library, in a folder named after the compute
capabilities of the GPUs and a digest of nvcc and its flags. All else that decides what is in it is
in the cell's own name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import sys
import warnings
from importlib import import_module
from pathlib import Path

import torch

from rnnext import _load
from rnnext.codegen import build

_LOADED: set[str] = set()


def runs(name: str) -> bool:
    """Whether a written cell runs on the GPUs here; compiled at the first call, unless cached.

    Returns:
        False after one warning, which says what is missing. True where there is no GPU: then a
        call is only traced, to run elsewhere.

    Raises:
        RuntimeError: nvcc failed.
    """
    return name in _LOADED or not torch.cuda.is_available() or load(name)


def load(name: str) -> bool:
    """Load a cell for the GPUs here; compiled at the first call, unless it is cached.

    Args:
        name: of a cell that is in the cache, compiled for the CPU.

    Returns:
        Whether it is loaded: not if it is not in the cache, or, after one warning, if nothing can
        be compiled for GPUs: RNNEXT_COMPILE=0, no nvcc of the right version, no GPU that has what
        the kernels need.

    Raises:
        RuntimeError: nvcc failed.
    """
    with build._LOCK:
        if name not in _LOADED and build._elsewhere(os.getpid()).submit(_loaded, name).result():
            _LOADED.add(name)
        return name in _LOADED


def _loaded(name: str) -> bool:
    folder = compile(name)
    if folder is None:
        return False
    build.load_library(torch.ops.rnnext.load_cuda_cell, name, folder)
    return True


def compile(name: str) -> Path | None:
    """The folder in the cache with a cell's library for the GPUs here, put there if need be; None
    as `load` gives False.
    """
    cell = build.cached(name)
    if cell is None:
        return None
    capabilities = _capabilities()
    if not capabilities:
        _warn("no GPU here has compute capability 8.0 or more")
        return None
    prefix = f"cuda-{'-'.join(capabilities)}-"
    nvcc, missing = _nvcc()
    if nvcc is None:  # what was compiled by any will do
        found = (folder for folder in sorted(cell.folder.glob(f"{prefix}*")) if build.whole(folder))
        folder = next(found, None)
        if folder is None:
            _warn(missing)
        return folder
    gencode = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in capabilities]
    words = {
        "nvcc": [nvcc],
        "flags": [*_flags(), "-Xcompiler=-fPIC", *gencode],
        "compiler": [f"-ccbin={_host_compiler()}"],
        "include": [f"-I{build.headers_folder()}"],
    }
    version = build._version((nvcc,))
    text = "\n".join((version, shlex.join([*words["flags"], *words["compiler"]])))
    folder = cell.folder / (prefix + hashlib.sha256(text.encode()).hexdigest()[:16])
    if not build.whole(folder):
        with build.only_process(cell.folder):
            if not build.whole(folder):
                _announce()
                files = {file: (cell.folder / file).read_text("utf-8") for file in _SOURCES}
                files["build.ninja"] = _NINJA.format(**build.escaped(words))
                kept = cell.folder.with_suffix(".cuda.failed")
                build.put(folder, files, scratch=cell.folder.parent, kept=kept)
    return folder


_SOURCES = ("cell.h", "cell.cu")

# The cudart that is linked is the one that torch has loaded.
_NINJA = """\
rule compile
  command = {nvcc} {flags} {compiler} {include} -DRNNEXT_CELL_TYPE=$type -c $in -o $out
rule link
  command = {nvcc} {compiler} -shared -cudart=shared $in -o $out
build f32.o: compile cell.cu
  type = float
build f64.o: compile cell.cu
  type = double
build cell.so: link f32.o f64.o
"""


@functools.cache
def _capabilities() -> tuple[str, ...]:
    """Compute capabilities of the GPUs here, such as "90", of those that have what kernels need."""
    found = {torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(found) if major >= 8)


@functools.cache
def _nvcc() -> tuple[str | None, str]:
    """The nvcc that compiles cells, found as the build finds it; or None, and what is missing."""
    if os.environ.get("RNNEXT_COMPILE") == "0":
        return None, "RNNEXT_COMPILE=0"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, places)), None)
    major = str(_load.cuda_version()).partition(".")[0]
    remedy = f"install the CUDA toolkit {major}.x, or name its folder: CUDA_HOME=/usr/local/cuda"
    if nvcc is None:
        return None, f"there is no nvcc (looked for {', '.join(places)}); {remedy}"
    found = re.search(r"release (\d+)\.\d+", build._version((nvcc,)))
    if found is None or found[1] != major:
        version = found[0] if found else "unknown release"
        return None, f"{nvcc} is of {version}, rnnext's kernels are for CUDA {major}.x; {remedy}"
    return nvcc, ""


@functools.cache
def _flags() -> tuple[str, ...]:
    """The flags that the built-in cells were compiled with, but for those that concern torch."""
    return tuple(shlex.split(import_module("rnnext._build_info").NVCC_FLAGS))


def _host_compiler() -> str:
    """The C++ compiler that nvcc is to use: of the command "ccache g++ -m64", g++."""
    words = [word for word in build._compiler() or ("c++",) if not word.startswith("-")]
    return words[-1]


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"{reason}: on GPUs, cells written in Python run step by step in PyTorch, several times "
        "slower",
        stacklevel=2,
    )


@functools.cache
def _announce() -> None:
    """Say why the first call takes so long."""
    print(
        "rnnext: compiling a cell for the GPU, once for this machine; it can take a minute",
        file=sys.stderr,
        flush=True,
    )
