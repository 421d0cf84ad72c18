"""The build of the CUDA kernels, as far as it goes without a GPU, nvcc or CUDA in torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

BUILDTOOLS = Path(__file__).parents[1] / "buildtools"


@pytest.fixture(autouse=True)
def buildtools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUILDTOOLS))


class TestChoice:
    """The decision whether to build CUDA kernels, which needs neither a GPU nor nvcc."""

    @pytest.fixture
    def nvcc(self, monkeypatch):
        """The module, on a machine that has all that the kernels need."""
        import nvcc

        monkeypatch.setenv("RNNEXT_CUDA", "")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
        monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(nvcc, "find", lambda: "nvcc")
        monkeypatch.setattr(nvcc, "cuda_version", lambda command: "13.0")
        monkeypatch.setattr(nvcc, "host_compiler_problem", lambda command, cxx: "")
        return nvcc

    @pytest.mark.parametrize("wish", ["", "1"])
    @pytest.mark.parametrize("version", ["13.0", "13.2"])
    def test_yes(self, nvcc, monkeypatch, capsys, wish, version):
        monkeypatch.setenv("RNNEXT_CUDA", wish)
        monkeypatch.setattr(nvcc, "cuda_version", lambda command: version)
        assert nvcc.choose(["scan.cu"], "g++") == version
        said = capsys.readouterr().out
        assert said == f"rnnext: CUDA kernels: yes, CUDA {version} for {nvcc.ARCHITECTURES}\n"

    def test_no_by_hand(self, nvcc, monkeypatch, capsys):
        monkeypatch.setenv("RNNEXT_CUDA", "0")
        assert nvcc.choose(["scan.cu"], "g++") is None
        assert capsys.readouterr().out == "rnnext: CUDA kernels: no: RNNEXT_CUDA=0\n"

    @pytest.mark.parametrize(
        ("lack", "words"),
        [
            ("sources", "csrc has no CUDA sources"),
            ("torch", "torch 2.13.0+cpu has no CUDA"),
            ("nvcc", "is for CUDA 13.0, but there is no nvcc; install the CUDA toolkit 13.x"),
            ("an nvcc that runs", "is for CUDA 13.0, but there is no nvcc; install the CUDA"),
            ("version", "is for CUDA 13.0, but nvcc of 12.8; install the CUDA toolkit 13.x"),
            ("compiler", "nvcc 13.0 does not work with g++: too new"),
        ],
    )
    def test_no_says_what_is_missing_and_by_hand_fails(
        self, nvcc, monkeypatch, capsys, lack, words
    ):
        if lack == "torch":
            monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
            monkeypatch.setattr(torch.version, "cuda", None)
        if lack == "nvcc":
            monkeypatch.setattr(nvcc, "find", lambda: None)
        if lack in ("an nvcc that runs", "version"):
            found = "12.8" if lack == "version" else None
            monkeypatch.setattr(nvcc, "cuda_version", lambda command: found)
        if lack == "compiler":
            monkeypatch.setattr(nvcc, "host_compiler_problem", lambda command, cxx: "too new")
        sources = [] if lack == "sources" else ["scan.cu"]
        assert nvcc.choose(sources, "g++") is None
        said = capsys.readouterr().out
        assert said.startswith("rnnext: CUDA kernels: no: ")
        assert words in said

        monkeypatch.setenv("RNNEXT_CUDA", "1")
        with pytest.raises(SystemExit, match=f"RNNEXT_CUDA=1, but .*{re.escape(words)}"):
            nvcc.choose(sources, "g++")

    def test_by_hand_is_0_or_1(self, nvcc, monkeypatch):
        monkeypatch.setenv("RNNEXT_CUDA", "yes")
        with pytest.raises(SystemExit, match="RNNEXT_CUDA=yes: give 0"):
            nvcc.choose(["scan.cu"], "g++")

    def test_nvcc_is_asked(self, tmp_path):
        import nvcc

        program = tmp_path / "nvcc"
        program.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation, release 13.0" && exit\n'
            'echo "In file included" "$1" >&2; echo "#error -- too new" >&2; exit 1\n'
        )
        program.chmod(0o755)
        assert nvcc.cuda_version(str(program)) == "13.0"
        assert nvcc.host_compiler_problem(str(program), "g++") == "#error -- too new"
        assert nvcc.cuda_version("/no/such/nvcc") is None

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ("", {"compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90,code=compute_90"}),
            ("8.6 9.0a", {"compute_86,code=sm_86", "compute_90a,code=sm_90a"}),
        ],
    )
    def test_architectures_need_no_gpu(self, nvcc, monkeypatch, wanted, expected):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
        flags = nvcc.flags("ccache g++-12 -m64")
        assert {f.removeprefix("-gencode=arch=") for f in flags if "gencode" in f} == expected
        assert "-ccbin=g++-12" in flags


class TestCompileCuda:
    SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6rnnext4cuda4scanIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN6rnnext4cuda4scanIfEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 3.110 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6rnnext4cuda4scanIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN6rnnext4cuda4scanIfEEvPT_
    368 bytes stack frame, 244 bytes spill stores, 240 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 368 bytes cumulative stack size
"""

    def test_what_kernels_take(self):
        import compile_cuda

        found = compile_cuda.kernels(self.SAID)
        assert found == [
            compile_cuda.Kernel("scan<float>", "sm_80", registers=12, shared=256),
            compile_cuda.Kernel("scan<float>", "sm_90", registers=32, stack=368, spills=484),
        ]
        assert [line.split() for line in compile_cuda.table(found)] == [
            ["sm_80", "shared", "stack", "spills", "sm_90", "shared", "stack", "spills"],
            ["12", "regs", "256", "0", "0", "32", "regs", "0", "368", "484", "scan<float>"],
        ]

    @pytest.mark.parametrize(
        ("said", "status", "well"),
        [
            (SAID.partition("sm_90")[0].rpartition("ptxas")[0], 0, True),
            (SAID, 0, False),
            ("ptxas warning : Stack size can not be determined", 0, False),
            ("scan.cu:1:10: fatal error: nothing.h", 1, False),
        ],
    )
    def test_spills_warnings_and_errors_fail(self, tmp_path, capsys, said, status, well):
        import compile_cuda

        program = tmp_path / "nvcc"
        program.write_text(f"#!/bin/sh\ncat >&2 <<'SAID'\n{said}\nSAID\nexit {status}\n")
        program.chmod(0o755)
        assert compile_cuda.compile_source([str(program)], Path("scan.cu")) == well
        printed = capsys.readouterr().out
        assert ("error: scan<float> does not keep to its registers" in printed) == (
            said == self.SAID
        )
