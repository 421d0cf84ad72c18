"""Compiles the CUDA backend for the emulator: csrc/cuda/ against the headers here, by g++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

SHARED = 227 * 1024  # bytes of shared memory that a block can have on a Hopper GPU

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fvisibility=hidden"),
    # As nvcc is told: the numbers of a step do not depend on what else is computed with it.
    *("-fno-trapping-math", "-ffp-contract=off"),
]


def library() -> Path:
    """The compiled library; compiles what has changed."""
    cxx = os.environ.get("CXX", "g++")
    folder = ROOT / "build" / f"emulator-torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    headers = [
        p for p in (*ROOT.glob("csrc/**/*"), *HERE.glob("**/*")) if p.suffix in (".h", ".cuh")
    ]
    changed = max(path.stat().st_mtime for path in [*headers, Path(__file__)])
    # What calls cuBLAS has a stand-in here.
    product = [path for path in (ROOT / "csrc/cuda").glob("*.c*") if path.name != "gemm.cpp"]
    sources = [p for p in (*product, *HERE.glob("*.cpp")) if p.suffix in (".cpp", ".cu")]
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", *(f"-isystem{p}" for p in include_paths())]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.name}.o"
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
    result = folder / "librnnext_emulated.so"
    if not result.exists() or any(o.stat().st_mtime > result.stat().st_mtime for o in objects):
        partial = result.with_suffix(f".{os.getpid()}")
        libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        command = [cxx, "-shared", *map(str, objects), "-o", str(partial), *libraries]
        subprocess.run(command, check=True)
        partial.replace(result)
    return result


if __name__ == "__main__":
    print(library(), file=sys.stdout)
