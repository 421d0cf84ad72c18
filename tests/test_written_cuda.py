"""Written cells for GPUs, as far as it goes without one: compiled, cached, done without."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from written_cells import ZOO

import rnnext
from rnnext import _load, ops, reference
from rnnext.cell import Declaration
from rnnext.codegen import build, cuda

sys.path.insert(0, str(Path(__file__).parents[1] / "buildtools"))
import compile_cuda
import nvcc

ROOT = Path(__file__).parents[1]

needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="there is no nvcc")
NVCC = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V1"; exit; fi
echo "$@" >> '{log}'
{then}
while [ "$1" != -o ]; do shift; done
echo "a library" > "$2"
"""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Compute capabilities of the GPUs that there seem to be, with a package built for them."""
    found = [(9, 0), (8, 0), (9, 0)]
    info = types.ModuleType("rnnext._build_info")
    info.CUDA_VERSION, info.NVCC_FLAGS = "13.0", "-std=c++20 '-D A'"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rnnext._build_info", info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: found[k])
    monkeypatch.setattr(cuda, "_LOADED", set())
    monkeypatch.setattr(ops, "_ON_CUDA", {*ops._ON_CUDA})
    forget()
    yield found
    forget()


def forget() -> None:
    """As a new process would begin."""
    cached = (cuda._capabilities, cuda._nvcc, cuda._flags, cuda._warn, cuda._announce)
    for function in (*cached, build._version, ops._has_cuda_kernels):
        function.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cells"
    monkeypatch.setenv("RNNEXT_CACHE", str(folder))
    return folder


class Compiler:
    """An nvcc that writes down how it is called, and makes files of no worth."""

    def __init__(self, home: Path) -> None:
        self.path, self.log = home / "bin" / "nvcc", home / "log"
        self.path.parent.mkdir(parents=True)
        self.write()

    def write(self, version: str = "13.0", then: str = "") -> None:
        self.path.write_text(NVCC.format(version=version, log=self.log, then=then))
        self.path.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda toolkit"))
    return Compiler(tmp_path / "cuda toolkit")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Libraries that the op is told to load."""
    paths: list[Path] = []

    def load(path: str) -> str:
        paths.append(Path(path))
        return paths[-1].parents[1].name

    monkeypatch.setattr(torch.ops.rnnext, "load_cuda_cell", load, raising=False)
    return paths


@pytest.fixture
def name(cache: Path, gpus: list[tuple[int, int]]) -> str:
    """Of a cell that seems to be compiled for the CPU."""
    folder = cache / "Mine_0123456789abcdef"
    files = {"cell.h": "", "cell.cu": '#include "cell.h"', "cell.so": "a library", "size": "9"}
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder.name


class TestCache:
    def test_built_once_and_found_again(
        self, name: str, cache: Path, compiler: Compiler, loaded: list[Path], capfd
    ) -> None:
        assert cuda.load(name)
        (library,) = loaded
        assert re.fullmatch(
            rf"{name}/cuda-80-90-[0-9a-f]{{16}}/cell.so", str(library.relative_to(cache))
        )
        calls = compiler.calls()
        assert len(calls) == 3
        for call in calls[:2]:
            for words in (
                *("-std=c++20 -D A", "-gencode=arch=compute_80,code=sm_80", "-Xcompiler=-fPIC"),
                *("-gencode=arch=compute_90,code=sm_90", "-ccbin=", f"-I{build.headers_folder()}"),
            ):
                assert words in call
        assert {re.search(r"CELL_TYPE=(\w+)", call)[1] for call in calls[:2]} == {"float", "double"}  # type: ignore[index]
        assert "-shared -cudart=shared" in calls[2]
        assert cuda.load(name)
        assert ops.has_kernel(name, "cuda", torch.float32)
        cuda._LOADED.clear()
        forget()
        assert cuda.load(name)
        assert loaded == [library, library]
        assert compiler.calls() == calls
        assert capfd.readouterr().err.count("compiling a cell for the GPU") == 1

    def test_what_decides_what_is_built_is_in_its_name(
        self, name: str, compiler: Compiler, gpus: list[tuple[int, int]]
    ) -> None:
        folders = [cuda.compile(name)]
        compiler.write("13.1")
        forget()
        folders.append(cuda.compile(name))
        gpus.pop(1)
        forget()
        folders.append(cuda.compile(name))
        sys.modules["rnnext._build_info"].NVCC_FLAGS = "-std=c++20"  # type: ignore[attr-defined]
        forget()
        folders.append(cuda.compile(name))
        assert len({*folders}) == 4
        assert [folder.name.rpartition("-")[0] for folder in folders if folder] == [
            *["cuda-80-90"] * 2,
            *["cuda-90"] * 2,
        ]

    def test_what_is_not_whole_is_built_again(self, name: str, compiler: Compiler) -> None:
        folder = cuda.compile(name)
        assert folder is not None
        (folder / "cell.so").write_text("a lib")
        assert cuda.compile(name) == folder
        assert (folder / "cell.so").read_text() == "a library\n"
        assert len(compiler.calls()) == 6

    def test_threads_that_build_at_once(self, name: str, compiler: Compiler) -> None:
        compiler.write(then="sleep 0.2")
        results: list[Path | None] = []
        work = [threading.Thread(target=lambda: results.append(cuda.compile(name))) for _ in "1234"]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert len(results) == 4
        assert len({*results}) == 1
        assert len(compiler.calls()) == 3

    def test_what_nvcc_says_is_reported_and_later_calls_try_again(
        self, name: str, cache: Path, compiler: Compiler, loaded: list[Path]
    ) -> None:
        compiler.write(then='echo "no luck today" >&2; exit 1')
        with pytest.raises(RuntimeError, match="compiling the cell failed") as caught:
            ops.has_kernel(name, "cuda", torch.float32)
        assert "no luck today" in str(caught.value)
        assert (cache / f"{name}.cuda.failed" / "cell.cu").exists()
        assert not loaded
        compiler.write()
        assert ops.has_kernel(name, "cuda", torch.float32)
        assert len(loaded) == 1

    def test_a_cell_that_is_not_in_the_cache(
        self, cache: Path, gpus: list[tuple[int, int]], compiler: Compiler
    ) -> None:
        assert not torch.ops.rnnext.build_cuda_cell("Mine_0123")
        assert not torch.ops.rnnext.build_cuda_cell("../Mine_0123")
        assert not compiler.calls()


class TestWithout:
    """What runs the reference, after one warning."""

    @pytest.mark.parametrize(
        ("lack", "words"),
        [
            (
                "nvcc",
                r"there is no nvcc \(looked for .*/nothing/bin/nvcc\); install the CUDA toolkit 13",
            ),
            (
                "version",
                r"nvcc is of release 12.8, rnnext's kernels are for CUDA 13.x; install the",
            ),
            (
                "RNNEXT_COMPILE",
                "RNNEXT_COMPILE=0: on GPUs, cells written in Python run step by step",
            ),
            ("gpu", "no GPU here has compute capability 8.0 or more"),
        ],
    )
    def test_one_warning_says_what_is_missing(
        self,
        lack: str,
        words: str,
        name: str,
        gpus: list[tuple[int, int]],
        compiler: Compiler,
        loaded: list[Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if lack == "nvcc":
            monkeypatch.setenv("CUDA_HOME", "/nothing")
        if lack == "version":
            compiler.write("12.8")
        if lack == "RNNEXT_COMPILE":
            monkeypatch.setenv("RNNEXT_COMPILE", "0")
        if lack == "gpu":
            gpus[:] = [(7, 5)]
        with pytest.warns(UserWarning, match=words) as caught:
            assert not ops.has_kernel(name, "cuda", torch.float32)
        assert not ops.has_kernel(name, "cuda", torch.float64)
        assert not torch.ops.rnnext.build_cuda_cell(name)
        assert len(caught) == 1
        assert ops.has_kernel("LSTM", "cuda", torch.float32)
        assert not loaded

    def test_without_nvcc_what_another_process_compiled_will_do(
        self, name: str, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = cuda.compile(name)
        assert folder is not None
        monkeypatch.setenv("CUDA_HOME", "/nothing")
        forget()
        assert cuda.compile(name) == folder

    def test_nvcc_is_found_as_by_the_build(
        self, gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("home", "path", "on the path"):
            Compiler(tmp_path / name)
        for variables in (
            {"CUDA_HOME": str(tmp_path / "home"), "CUDA_PATH": str(tmp_path / "path")},
            {"CUDA_PATH": str(tmp_path / "path")},
            {"PATH": f"{tmp_path}/on the path/bin{os.pathsep}{os.environ['PATH']}"},
        ):
            with monkeypatch.context() as m:
                for variable in ("CUDA_HOME", "CUDA_PATH"):
                    m.delenv(variable, raising=False)
                for variable, value in variables.items():
                    m.setenv(variable, value)
                cuda._nvcc.cache_clear()
                assert cuda._nvcc() == (nvcc.find(), "")


class TestTracing:
    """Calls on tensors of a GPU that hold no data; there is no GPU."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, gpus: list[tuple[int, int]]) -> None:
        gpus.clear()

    @pytest.fixture
    def no_reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reference, "rnn", None)

    @pytest.mark.parametrize("kind", ["LSTM", "LightGRU", "Zoneout"])
    def test_a_layer(self, kind: str, no_reference: None) -> None:
        y = call(kind, torch.float32, torch.float32)
        assert y.device.type == "cuda"
        assert y.dtype == torch.float32
        assert y.shape == (5, 2, 4)

    @pytest.mark.parametrize("kind", ["LSTM", "GRUCell", "LightGRU"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_halves_and_autocast_give_their_dtype(
        self, kind: str, dtype: torch.dtype, no_reference: None
    ) -> None:
        """Autocast itself is off where there is no GPU."""
        assert call(kind, dtype, dtype).dtype == dtype
        try:
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", dtype)
            for of_x, of_weights in itertools.product((torch.float32, torch.float16), repeat=2):
                assert call(kind, of_x, of_weights).dtype == dtype
            assert call(kind, torch.float64, torch.float64).dtype == torch.float64
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", torch.float16)

    def test_without_cuda_kernels_it_is_the_reference(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_load, "cuda_version", lambda: None)
        forget()
        ops._warn_of_reference.cache_clear()
        with pytest.warns(UserWarning, match="no kernel for torch.float32 on cuda"):
            y = call("LightGRU", torch.float32, torch.float32)
        assert y.device.type == "cuda"


def call(kind: str, of_x: torch.dtype, of_weights: torch.dtype) -> torch.Tensor:
    """What a layer or cell gives first, on a GPU that is not there."""
    layer = ZOO[kind](3, 4) if kind in ZOO and kind != "LSTM" else getattr(rnnext, kind)(3, 4)
    with FakeTensorMode():
        weights = {
            name: torch.empty(weight.shape, dtype=of_weights, device="cuda")
            for name, weight in layer.named_parameters()
        }
        x = torch.empty((2, 3) if "Cell" in kind else (5, 2, 3), dtype=of_x, device="cuda")
        result: Any = torch.func.functional_call(layer, weights, (x,))
        return result if isinstance(result, torch.Tensor) else result[0]


def unit(cell: Declaration, streams: int, folder: Path) -> Path:
    """The source file of a cell."""
    header, struct = build._generate(cell, streams, "Cell_0")
    (folder / "cell.h").write_text(header)
    (folder / "cell.cu").write_text(build._CUDA_UNIT.format(struct=struct))
    return folder / "cell.cu"


@needs_nvcc
class TestNvcc:
    @pytest.mark.parametrize(
        ("cell", "streams"),
        [("LightGRU", 1), ("LayerNormLSTM", 1), ("MinimalGated", 1), ("LightGRU", 2)],
    )
    def test_takes_the_code_and_keeps_it_in_registers(
        self, cell: str, streams: int, tmp_path: Path
    ) -> None:
        command = [str(nvcc.find()), *nvcc.cell_flags(), "-Icsrc", "-Xptxas=-v"]
        command += [f"-gencode=arch=compute_{c},code=sm_{c}" for c in (80, 90)]
        command += ["-DRNNEXT_CELL_TYPE=float", "-c", "-o", os.devnull]
        source = unit(ZOO[cell]._default, streams, tmp_path)
        done = subprocess.run([*command, source], cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "warning" not in said, said
        found = compile_cuda.kernels(said)
        assert {kernel.arch for kernel in found} == {"sm_80", "sm_90"}
        assert not [kernel for kernel in found if kernel.stack or kernel.spills]

    def test_a_library_with_a_cell(self, cache: Path, gpus: list[tuple[int, int]]) -> None:
        """The real nvcc, from the cell's name to the symbol that the registry looks for."""
        gpus[:] = [(9, 0)]
        version = str(nvcc.cuda_version(str(nvcc.find())))
        info = sys.modules["rnnext._build_info"]
        info.CUDA_VERSION, info.NVCC_FLAGS = version, " ".join(nvcc.cell_flags())  # type: ignore[attr-defined]
        compiled = build.compile(ZOO["SLSTM"]._default)
        assert compiled is not None
        folder = cuda.compile(compiled.name)
        assert folder is not None
        toolkits = Path(str(nvcc.find())).resolve().parents[1], Path("/usr/local/cuda")
        runtimes = [path for folder in toolkits for path in folder.glob("lib*/libcudart.so.*")]
        if not runtimes:
            pytest.skip(f"no CUDA runtime in {toolkits} to load the library with")
        runtime = runtimes[0]
        ctypes.CDLL(str(runtime))
        cell = ctypes.CDLL(str(folder / "cell.so"))
        version_found = ctypes.c_int.in_dll(cell, "rnnext_cuda_cell").value
        header = (ROOT / "csrc/cuda/written.h").read_text()
        assert f"kCellVersion = {version_found};" in header
