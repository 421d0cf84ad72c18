"""Compiles the CUDA backend for the emulator: csrc/cuda/ against the headers here, by g++."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from rnnext.codegen import build

SHARED = 227 * 1024  # bytes of shared memory that a block can have on a Hopper GPU

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fvisibility=hidden"),
    # As nvcc is told: the numbers of a step do not depend on what else is computed with it.
    *("-fno-trapping-math", "-ffp-contract=off"),
]


FOLDER = ROOT / "build" / f"emulator-torch-{torch.__version__}"
INCLUDES = [f"-I{HERE}", f"-I{ROOT / 'csrc'}"]


def headers_changed() -> float:
    """When."""
    found = (p for p in (*ROOT.glob("csrc/**/*"), *HERE.glob("**/*")) if p.suffix in (".h", ".cuh"))
    return max(path.stat().st_mtime for path in [*found, Path(__file__)])


@functools.cache
def library() -> Path:
    """The compiled library; compiles what has changed."""
    cxx, changed = os.environ.get("CXX", "g++"), headers_changed()
    FOLDER.mkdir(parents=True, exist_ok=True)
    # What calls cuBLAS has a stand-in here.
    product = [path for path in (ROOT / "csrc/cuda").glob("*.c*") if path.name != "gemm.cpp"]
    sources = [p for p in (*product, *HERE.glob("*.cpp")) if p.suffix in (".cpp", ".cu")]
    includes = [*INCLUDES, *(f"-isystem{p}" for p in include_paths())]

    def compiled(source: Path) -> Path:
        target = FOLDER / f"{source.name}.o"
        newest = max(changed, source.stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            # A file that is there is whole.
            partial = target.with_suffix(f".{os.getpid()}")
            command = [cxx, "-x", "c++", *FLAGS, *includes, "-c", str(source), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or done.stderr:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            partial.replace(target)
        return target

    if shutil.which(cxx.split()[0]) is None:
        raise RuntimeError(f"the emulator needs a C++ compiler, but there is no {cxx}")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compiled, sources))
    result = FOLDER / "librnnext_emulated.so"
    if not result.exists() or any(o.stat().st_mtime > result.stat().st_mtime for o in objects):
        partial = result.with_suffix(f".{os.getpid()}")
        libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        command = [cxx, "-shared", *map(str, objects), "-o", str(partial), *libraries]
        subprocess.run(command, check=True)
        partial.replace(result)
    return result


def cell(name: str) -> Path | None:
    """In place of rnnext.codegen.cuda.compile: the folder with a written cell's library, which uses
    the emulator that is loaded. Without torch's headers, as nvcc compiles it.
    """
    cached = build.cached(name)
    if cached is None:
        return None
    folder = FOLDER / "cells" / name
    result = folder / "cell.so"
    if not result.exists() or result.stat().st_mtime < headers_changed():
        folder.mkdir(parents=True, exist_ok=True)
        source, objects = str(cached.folder / "cell.cu"), [folder / "float.o", folder / "double.o"]
        command = [os.environ.get("CXX", "g++"), "-x", "c++", *FLAGS, *INCLUDES, "-c", source]
        compiling = [
            subprocess.Popen([*command, f"-DRNNEXT_CELL_TYPE={o.stem}", "-o", str(o)])
            for o in objects
        ]
        assert [process.wait() for process in compiling] == [0, 0]
        link = [command[0], "-shared", *map(str, objects), str(library()), "-o", str(result)]
        subprocess.run(link, check=True)
    return folder


if __name__ == "__main__":
    print(library(), file=sys.stdout)
