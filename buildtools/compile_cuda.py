"""Compiles every CUDA source as the build does, and prints what each kernel takes of a GPU.

    python buildtools/compile_cuda.py                       # csrc/ and benchmarks/
    python buildtools/compile_cuda.py csrc/cuda/forward.cu

Needs nvcc and torch, but no GPU and no CUDA in torch. Fails where a source gives an error or a
warning, and where a kernel spills registers or keeps arrays on the stack. TORCH_CUDA_ARCH_LIST
names other architectures than the build's, MAX_JOBS how many sources are compiled at once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import checks
import nvcc
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Kernel:
    """What ptxas says of a kernel: registers a thread; shared memory, stack and spills in bytes."""

    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0


def command(compiler: str) -> list[str]:
    """nvcc with the build's flags; it compiles for no one's use."""
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *nvcc.flags(checks.find_compiler()), "-Xptxas=-v"]
    flags += ["-Icsrc", *(f"-isystem={path}" for path in cpp_extension.include_paths())]
    if not torch.version.cuda:  # such a torch lacks a generated header, which this leaves out
        flags.append("-DC10_USING_CUSTOM_GENERATED_MACROS")
    return [compiler, *flags, "-c", "-o", os.devnull]


def kernels(said: str) -> list[Kernel]:
    """The kernels in the output of ptxas -v."""
    found: list[Kernel] = []
    for line in said.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            found.append(Kernel(entry[1], entry[2]))
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+).* stores, (\d+).* loads", line):
            # Of the kernel, or of a function that it calls.
            found[-1].stack += int(frame[1])
            found[-1].spills += int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            found[-1].registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1].shared = int(shared[1]) if shared else 0
    names = "\n".join(kernel.name for kernel in found)
    done = subprocess.run(["c++filt", "-p"], input=names, capture_output=True, text=True)
    for kernel, name in zip(found, done.stdout.splitlines(), strict=True):
        kernel.name = re.sub(r"^void |\(anonymous namespace\)::|rnnext::|cuda::", "", name)
    return found


def table(found: list[Kernel]) -> Iterator[str]:
    """A line for each kernel, a group of columns for each architecture."""
    archs = sorted({kernel.arch for kernel in found})
    if not archs:
        yield "no kernels"
        return
    yield "".join(f"{arch:>10} {'shared':>7} {'stack':>6} {'spills':>6}" for arch in archs)
    for name in sorted({kernel.name for kernel in found}):
        of_name = {kernel.arch: kernel for kernel in found if kernel.name == name}
        columns = (
            f"{k.registers:5} regs {k.shared:7} {k.stack:6} {k.spills:6}" if k else " " * 31
            for k in map(of_name.get, archs)
        )
        yield f"{''.join(columns)}  {name}"


def compile_source(nvcc_command: list[str], source: Path) -> bool:
    """Compiles a source and prints what came of it; whether all is well."""
    start = time.monotonic()
    done = subprocess.run([*nvcc_command, str(source)], capture_output=True, text=True)
    said = done.stdout + done.stderr
    compiled = done.returncode == 0 and not re.search(r"\bwarning\b", said)
    found = kernels(said)
    in_memory = sorted({k.name for k in found if k.stack or k.spills})
    lines = [f"\n{source} ({time.monotonic() - start:.0f} s)"]
    lines += table(found) if compiled else [said]
    lines += [f"error: {name} does not keep to its registers" for name in in_memory]
    print("\n".join(lines), flush=True)  # at once: several are compiled at a time
    return compiled and not in_memory


def main() -> int:
    named = [Path(argument).absolute() for argument in sys.argv[1:]]
    os.chdir(ROOT)
    sources = named or [
        path for folder in ("csrc", "benchmarks") for path in sorted(Path(folder).glob("**/*.cu"))
    ]
    compiler = nvcc.find()
    if not compiler:
        print(f"no nvcc: {len(sources)} CUDA sources not compiled")
        return 0
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    nvcc_command = command(compiler)
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda source: compile_source(nvcc_command, source), sources)
        return 0 if all(list(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
