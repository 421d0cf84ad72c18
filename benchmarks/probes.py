"""What the processor can do, measured here and now by probes.cpp.

    python benchmarks/probes.py

The probes are compiled with the package's flags for the instruction set in use, so RNNEXT_ISA
applies to them too. It does not to libtorch's products: ONEDNN_MAX_CPU_ISA limits those.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from roofline import GATES, Machine

import rnnext
from rnnext.codegen.build import headers_folder

SECONDS = 0.1  # each probe; its best time counts
# Of each thread, up to what no cache holds: 16 KiB, 24 KiB, 32 KiB, ... 64 MiB.
SETS = sorted(n << k for n, last in ((2, 26), (3, 25)) for k in range(13, last))


@functools.cache
def _library() -> ctypes.CDLL:
    facts = rnnext.build_info()
    source = Path(__file__).with_name("probes.cpp")
    # Without -fopenmp: the system's OpenMP would be a second one beside torch's.
    flags = [flag for flag in shlex.split(str(facts["cxx_flags"])) if flag != "-fopenmp"]
    flags += [
        f"-I{headers_folder()}",
        f'-DRNNEXT_ISA_HEADER="cpu/isa/{facts["instruction_set"]}.h"',
    ]
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probes.so"
        command = [*compiler, *flags, "-fPIC", "-shared", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        found = ctypes.CDLL(str(library))
    found.peak_gflops.argtypes = [ctypes.c_int, ctypes.c_double]
    found.read_gigabytes.argtypes = [ctypes.c_int64, ctypes.c_double]
    found.pointwise_nanoseconds.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    for probe in (found.peak_gflops, found.read_gigabytes, found.pointwise_nanoseconds):
        probe.restype = ctypes.c_double
    return found


def measure(threads: int) -> Machine:
    """Run every probe on so many threads at once, which takes some seconds."""
    probes = _library()
    with ThreadPoolExecutor(threads) as pool:

        def total(probe: Callable[..., float], *arguments: int) -> float:
            """Of all threads; a call by ctypes lets the others run."""
            runs = [pool.submit(probe, *arguments, SECONDS) for _ in range(threads)]
            return sum(run.result() for run in runs)

        peaks = {"float32": total(probes.peak_gflops, 0), "bfloat16": total(probes.peak_gflops, 1)}
        return Machine(
            threads,
            {dtype: peak for dtype, peak in peaks.items() if peak},
            [(size, total(probes.read_gigabytes, size)) for size in SETS],
            {
                cell: tuple(total(probes.pointwise_nanoseconds, k, i) / threads for i in range(3))
                for k, cell in enumerate(GATES)
            },
        )


def apart(threads: int) -> float:
    """Gigabytes a second that so many threads read together, each again and again three quarters
    of 32 MiB: more where their processors do not share their largest cache. A virtual machine may
    be moved between the two while it runs, and what one thread writes and another reads takes
    several times as long there.
    """
    probes = _library()
    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(probes.read_gigabytes, 24 << 20, 0.02) for _ in range(threads)]
        return sum(run.result() for run in runs)


if __name__ == "__main__":
    machine = measure(torch.get_num_threads())
    print(f"{machine.threads} threads")
    for dtype, peak in machine.gflops.items():
        print(f"{dtype:8} {peak:6.0f} GFLOP/s")
    for size, rate in machine.gigabytes:
        print(f"{size >> 10:6} KiB a thread {rate:6.0f} GB/s")
    for cell, times in machine.pointwise.items():
        print(f"{cell:4} {times[0]:.2f} ns a unit, training {times[1]:.2f} and {times[2]:.2f}")
