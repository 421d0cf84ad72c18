"""The installed package: its libraries' links, imports that cannot work, the build's checks."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch

import rnnext
from rnnext import _load, ops

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rnnext.__file__).parent


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with the rnnext that is tested here on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def fake_build(
    monkeypatch: pytest.MonkeyPatch, torch_version: str | None, cuda: str | None = None
) -> None:
    """Let the record of the build name that torch and CUDA; None: nothing was built."""
    module = None
    if torch_version is not None:
        module = types.ModuleType("rnnext._build_info")
        module.TORCH_VERSION = torch_version
        module.CUDA_VERSION = cuda
    monkeypatch.setitem(sys.modules, "rnnext._build_info", module)


class TestImport:
    def test_another_torch_is_one_clear_error(self):
        code = (
            "import sys, types\n"
            "info = sys.modules['rnnext._build_info'] = types.ModuleType('rnnext._build_info')\n"
            "info.TORCH_VERSION = '1.13.1'\n"
            "try:\n"
            "    import rnnext\n"
            "except ImportError as error:\n"
            "    print(error)\n"
            "print('loaded' if 'rnnext/_ops' in open('/proc/self/maps').read() else 'not loaded')\n"
        )
        assert run("-c", code).stdout == (
            f"rnnext was built against torch 1.13.1, but torch {torch.__version__} is installed. "
            f"Rebuild it in its source folder:\n    {_load.BUILD_COMMAND}\nnot loaded\n"
        )

    def test_nothing_built_is_one_clear_error(self, monkeypatch):
        fake_build(monkeypatch, None)
        with pytest.raises(ImportError, match="not built") as error:
            _load.load_library()
        assert str(error.value).endswith(_load.BUILD_COMMAND)

    def test_built_for_another_python_is_one_clear_error(self, monkeypatch):
        monkeypatch.setattr(_load, "EXTENSION_SUFFIXES", [".another-python.so"])
        with pytest.raises(ImportError, match=r"no _ops\.another-python\.so") as error:
            _load.load_library()
        assert str(error.value).endswith(_load.BUILD_COMMAND)

    @pytest.mark.parametrize("suffix", [".0", ".99", ".1+cu130", ".0a0+git1234"])
    def test_another_patch_or_variant_of_torch_is_accepted(self, monkeypatch, suffix):
        major, minor = torch.__version__.split(".")[:2]
        fake_build(monkeypatch, f"{major}.{minor}{suffix}")
        _load.check_torch()

    def test_next_minor_version_of_torch_is_refused(self, monkeypatch):
        major, minor = torch.__version__.split(".")[:2]
        fake_build(monkeypatch, f"{major}.{minor}0.0")
        with pytest.raises(ImportError, match="Rebuild"):
            _load.check_torch()

    @pytest.mark.parametrize(
        ("built", "installed"), [(None, None), (None, "13.0"), ("13.0", "13.0"), ("13.0", "13.2")]
    )
    def test_cuda_of_one_major_version_is_accepted(self, monkeypatch, built, installed):
        monkeypatch.setattr(torch.version, "cuda", installed)
        fake_build(monkeypatch, torch.__version__, built)
        _load.check_torch()

    @pytest.mark.parametrize(
        ("installed", "words"), [(None, "without CUDA"), ("12.8", "for CUDA 12.8")]
    )
    def test_another_cuda_is_one_clear_error(self, monkeypatch, installed, words):
        monkeypatch.setattr(torch.version, "cuda", installed)
        fake_build(monkeypatch, torch.__version__, "13.0")
        with pytest.raises(ImportError) as error:
            _load.load_library()
        assert str(error.value) == (
            f"rnnext was built with kernels for CUDA 13.0, but torch {torch.__version__} is "
            f"{words}. Rebuild it in its source folder:\n    {_load.BUILD_COMMAND}"
        )

    @pytest.mark.parametrize(
        ("device", "torch_cuda", "built", "says_how"),
        [
            ("cuda", "13.0", None, True),
            ("cuda", "13.0", "13.0", False),  # a dtype that has no kernel
            ("cuda", None, None, False),  # a torch for AMD's GPUs calls them cuda, too
            ("xpu", None, None, False),
        ],
    )
    def test_the_reference_on_a_gpu_says_how_to_build_kernels(
        self, monkeypatch, device, torch_cuda, built, says_how
    ):
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        fake_build(monkeypatch, torch.__version__, built)
        with pytest.warns(UserWarning, match=f"no kernel for torch.float32 on {device}") as caught:
            ops._warn_of_reference.__wrapped__(device, torch.float32)
        assert str(caught[0].message).endswith(_load.BUILD_COMMAND) == says_how


def links(library: Path) -> set[str]:
    """What a library asks the loader for (NEEDED), and where to look (RPATH, RUNPATH)."""
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    output = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    entries = re.findall(r"\((NEEDED|RPATH|RUNPATH)\).*\[(.*)\]", output.stdout)
    return {value if tag == "NEEDED" else f"{tag} {value}" for tag, value in entries}


class TestLibraries:
    def test_ops_link_torch_and_no_python_and_no_openmp(self):
        ours = {name.split(".so")[0] for name in links(_load.library_path())}
        system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl"}
        torchs = {"libtorch", "libtorch_cpu", "libc10"}
        if _load.cuda_version():
            torchs |= {"libtorch_cuda", "libc10_cuda"}  # which bring cudart
        assert {"libtorch_cpu", "libc10"} <= ours
        assert ours <= {*torchs, *system, "ld-linux-x86-64"}

    def test_build_module_links_no_torch(self):
        library = Path(importlib.import_module("rnnext._build").__file__)
        assert not [name for name in links(library) if re.search("torch|python|omp|PATH", name)]

    def test_one_openmp_runtime_in_the_process(self):
        code = (
            "import torch, rnnext\n"
            "torch.set_num_threads(2)\n"
            "rnnext.LSTM(8, 16)(torch.zeros(3, 64, 8))\n"
            "paths = {line.split()[-1] for line in open('/proc/self/maps')}\n"
            "print(*(p for p in paths if 'omp' in p.rpartition('/')[2]))\n"
        )
        result = run("-c", code)
        runtimes = result.stdout.split()
        assert result.returncode == 0, result.stderr
        assert len(runtimes) == 1
        assert Path(runtimes[0]).is_relative_to(Path(torch.__file__).parents[1])

    def test_build_info(self):
        info = _load.build_info()
        assert info["torch_version"].split(".")[:2] == torch.__version__.split(".")[:2]
        assert info["cxx_standard"] >= 202002
        assert "march=native" not in info["cxx_flags"]
        assert info["openmp"] or info["compiler"].startswith("clang++")
        assert info["instruction_set"] in info["instruction_sets"]


class TestMetadata:
    def test_installed_distribution_is_this_package(self):
        try:
            distribution = importlib.metadata.distribution("rnnext")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("needs rnnext installed, not only on the path")
        assert distribution.version == rnnext.__version__
        assert distribution.metadata["License-Expression"] == "BSD-3-Clause"
        scripts = distribution.entry_points.select(group="console_scripts")
        assert [(script.name, script.value) for script in scripts] == [
            ("rnnext", "rnnext.cli:main")
        ]

    def test_build_command_names_what_the_build_requires(self):
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        setuptools, ninja = sorted(requires, reverse=True)
        assert f'"{setuptools}"' in _load.BUILD_COMMAND
        assert ninja.startswith("ninja")

    def test_package_is_typed(self):
        assert (PACKAGE / "py.typed").exists()


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    import checks

    return checks


class TestBuildChecks:
    @pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu130", "2.13.0+cpu", "2.13.2a0+git1"])
    def test_torch_in_range(self, checks, version):
        checks.check_torch(version, "somewhere")

    @pytest.mark.parametrize("version", ["1.13.1", "2.2.0", "2.10.0+cpu", "2.14.0", "3.0.0"])
    def test_torch_out_of_range(self, checks, version):
        with pytest.raises(SystemExit, match=rf"torch {re.escape(version)} is installed in\s+here"):
            checks.check_torch(version, "here")

    @pytest.mark.parametrize("version", [(3, 10, 13), (3, 13, 0)])
    def test_python_out_of_range(self, checks, monkeypatch, version):
        monkeypatch.setattr(sys, "version_info", version)
        with pytest.raises(SystemExit, match=r"needs Python 3\.11 or 3\.12"):
            checks.check_python()

    def test_no_compiler(self, checks, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler -m64")
        with pytest.raises(SystemExit, match="looked for no-such-compiler"):
            checks.check_compiler()

    @pytest.mark.parametrize("version", [("g++", 9), ("clang++", 13)])
    def test_old_compiler(self, checks, monkeypatch, version):
        monkeypatch.setattr(checks, "find_compiler", lambda: "c++")
        monkeypatch.setattr(checks, "compiler_version", lambda command: version)
        with pytest.raises(SystemExit, match=r"needs g\+\+ 10 or clang\+\+ 14"):
            checks.check_compiler()

    def test_no_headers(self, checks, monkeypatch, tmp_path):
        monkeypatch.setattr(checks.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(SystemExit, match="headers are missing"):
            checks.check_headers()


class TestBackend:
    @pytest.fixture
    def backend(self, checks):
        import backend

        return backend

    def test_builds_against_the_torch_that_is_there(self, backend):
        assert backend.get_requires_for_build_wheel() == []

    def test_asks_for_torch_only_where_there_is_none(self, backend, monkeypatch):
        monkeypatch.setattr(backend, "find_torch", lambda path: None)
        assert backend.get_requires_for_build_editable() == ["torch>=2.11,<2.14"]
