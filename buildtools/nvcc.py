"""Whether the CUDA kernels are built, and with which flags; setup.py and compile_cuda.py ask here.

They are built where torch has CUDA and there is an nvcc of the same major version, whether or not
there is a GPU: containers build without one. RNNEXT_CUDA=0 or 1 decides by hand.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import checks

# In the words of TORCH_CUDA_ARCH_LIST, which overrides it: machine code for 8.x and Hopper, and PTX
# that the driver compiles for later chips. 9.0a would not do in place of 9.0: neither its code nor
# its PTX runs on any chip but Hopper.
ARCHITECTURES = "8.0;9.0+PTX"

# Beside those that torch adds, which switch off the operators of CUDA's half precision types.
FLAGS = [
    *("-std=c++20", "-O3", "-DNDEBUG", "-lineinfo"),
    "--fmad=false",  # as -ffp-contract=off in setup.py
    "-Xcompiler=-Wall,-fvisibility=hidden",
]


def find() -> str | None:
    """The nvcc of CUDA_HOME, or the one on the path, or of /usr/local/cuda: as torch finds it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which(f"{home}/bin/nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_version(nvcc: str) -> str | None:
    """The CUDA version of an nvcc, such as "13.0"; None where it does not run."""
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else None


def host_compiler_problem(nvcc: str, cxx: str) -> str:
    """What nvcc says against a C++ compiler, such as that it is too new; "" where they agree."""
    command = [nvcc, *host_compiler(cxx), "-std=c++20", "-E", "-x", "cu", os.devnull]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    lines = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def host_compiler(cxx: str) -> list[str]:
    """The flag that gives nvcc the compiler of the C++ files, "g++" in CXX="ccache g++ -m64"."""
    return ["-ccbin=" + [word for word in shlex.split(cxx) if not word.startswith("-")][-1]]


def wish() -> str:
    """RNNEXT_CUDA: "" (build the kernels where that can be done), "0" or "1"."""
    value = os.environ.get("RNNEXT_CUDA", "")
    if value not in ("", "0", "1"):
        raise checks.fail(
            f"RNNEXT_CUDA={value}: give 0 (no CUDA kernels) or 1 (build them, or fail)"
        )
    return value


def missing(torch_version: str, torch_cuda: str | None, nvcc: str | None) -> str:
    """What keeps the CUDA kernels from being built; "" where nothing does.

    torch_cuda and nvcc are versions of CUDA: what torch was built for, and the compiler's.
    """
    if torch_cuda is None:
        return f"torch {torch_version} has no CUDA"
    major = torch_cuda.partition(".")[0]
    remedy = f"install the CUDA toolkit {major}.x, or name its folder: CUDA_HOME=/usr/local/cuda"
    if nvcc is None:
        return f"torch {torch_version} is for CUDA {torch_cuda}, but there is no nvcc; {remedy}"
    if nvcc.partition(".")[0] != major:
        return f"torch {torch_version} is for CUDA {torch_cuda}, but nvcc of {nvcc}; {remedy}"
    return ""


def choose(sources: list[str], cxx: str) -> str | None:
    """The CUDA version to build the kernels with, or None. Says what was chosen and why.

    Raises:
        SystemExit: RNNEXT_CUDA=1, and something is missing.
    """
    import torch

    decided = wish()
    version = None
    if decided == "0":
        why_not = "RNNEXT_CUDA=0"
    elif not sources:
        why_not = "csrc has no CUDA sources"
    else:
        nvcc = find()
        version = cuda_version(nvcc) if nvcc else None
        why_not = missing(torch.__version__, torch.version.cuda, version)
        if not why_not and nvcc and (problem := host_compiler_problem(nvcc, cxx)):
            why_not = f"nvcc {version} does not work with {cxx}: {problem}"
    if decided == "1" and why_not:
        raise checks.fail(f"RNNEXT_CUDA=1, but {why_not}")
    chosen = f"no: {why_not}" if why_not else f"yes, CUDA {version} for {architectures()}"
    print(f"rnnext: CUDA kernels: {chosen}", flush=True)
    return None if why_not else version


def architectures() -> str:
    """What the kernels are compiled for."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES


def cell_flags() -> list[str]:
    """Those of cells written in Python, which are compiled where the package is used: the build's,
    but for what concerns torch and the GPUs.
    """
    return [*FLAGS, "--expt-relaxed-constexpr"]  # which torch adds to the others


def flags(cxx: str) -> list[str]:
    """nvcc's flags beside those that torch's build adds by itself."""
    from torch.utils import cpp_extension

    # By itself, torch looks at the GPUs of this machine.
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    chosen = [*FLAGS, *cpp_extension._get_cuda_arch_flags(), *host_compiler(cxx)]
    return chosen + includes()


def includes() -> list[str]:
    """Where CUDA's headers are, for nvcc and for the C++ compiler.

    Some headers of ATen's need cuBLAS's and others', which a toolkit may lack; pip's torch brings
    them. The toolkit's own come first.
    """
    import torch

    compiler = find()
    assert compiler is not None  # choose() has found it
    toolkit = Path(_home(compiler)) / "include"
    beside_torch = Path(torch.__file__).parents[1]
    folders = [toolkit, *sorted(beside_torch.glob("nvidia/*/include"))]
    return [word for folder in folders for word in ("-isystem", str(folder))]


def _home(compiler: str) -> str:
    """The toolkit's folder, as nvcc names it: the one on the path may be a script elsewhere."""
    command = [compiler, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    found = re.search(r"^#\$ TOP=(.*)$", done.stderr, re.MULTILINE)
    return str(Path(found[1])) if found else str(Path(compiler).resolve().parents[1])
