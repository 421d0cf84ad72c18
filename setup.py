"""Builds the package's two libraries; all that needs no code is in pyproject.toml.

rnnext/_ops    the kernels: registers the ops with torch when loaded; links libtorch, no libpython
rnnext/_build  a Python module that tells how they were built

An installed package also has, in rnnext/include, the headers that cells written in Python need.
"""

import importlib.util
import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "buildtools"))
import checks  # noqa: E402
import nvcc  # noqa: E402

# pip puts no scripts of an environment that is not activated on the path; ninja is one.
os.environ["PATH"] = os.pathsep.join(
    [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
)
checks.check_python()
checks.check_tools()

CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-Wall",
    "-fvisibility=hidden",
    # Loops vectorise only where a comparison may be evaluated for lanes that do not need it.
    "-fno-trapping-math",
    "-fno-math-errno",
    "-ffp-contract=off",  # see fma in csrc/cpu/simd.h
]
# For the compiler alone: the linker would add the system's libgomp. At run time the symbols come
# from the libgomp that torch brings; two runtimes in a process would fight over the cores.
OPENMP = {"g++": ["-fopenmp"], "clang++": []}

# The CUDA libraries themselves, cudart for one, are those that torch brings, as with OpenMP.
CUDA_LIBRARIES = ["torch_cuda", "c10_cuda"]

BUILD_SOURCE = "csrc/build_info.cpp"
BUILD_INFO = '''"""Written by setup.py, for _load.py to read before the kernels are loaded."""

TORCH_VERSION = "{torch}"
CUDA_VERSION = {cuda!r}
CUDA_ARCHITECTURES = {architectures!r}
NVCC_FLAGS = {nvcc_flags!r}
'''


def glob(*patterns: str) -> list[str]:
    """Files below this folder, relative to it as setuptools wants them, in a fixed order."""
    return sorted(
        str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)
    )


# What runs on the host beside the CUDA kernels, and needs CUDA's headers.
CUDA_HOST_SOURCES = glob("csrc/cuda/*.cpp")


def included(roots: list[str]) -> list[str]:
    """Files of csrc/ and all that they include of it."""
    found: list[str] = []
    while roots:
        file = roots.pop()
        if file not in found:
            found.append(file)
            names = re.findall(r'^#include "(.+)"', (ROOT / file).read_text("utf-8"), re.MULTILINE)
            roots += [f"csrc/{name}" for name in names]
    return sorted(found)


# What a cell written in Python is compiled against, where the package is used.
CELL_HEADERS = included(
    ["csrc/cells/math.h", "csrc/cpu/written.h", "csrc/cuda/written.cuh", *glob("csrc/cpu/isa/*.h")]
)


def torch_build_ext() -> type[build_ext]:
    """The build_ext command, against the torch that can be imported here."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

    class TorchBuildExt(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.include_dirs += [str(ROOT / "csrc"), *include_paths()]
            self.library_dirs += library_paths()
            # In the source tree, so that what is up to date is not compiled again, though pip sets
            # up each build afresh; and one for each torch.
            self.build_temp = f"build/{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"

        def run(self) -> None:
            checks.check_headers()
            checks.check_torch(torch.__version__, str(Path(torch.__file__).parent))
            # torch, which compiles, and setuptools, which links, both read CXX.
            os.environ["CXX"], family = checks.check_compiler()
            if not OPENMP[family]:
                print("rnnext: clang++ cannot use torch's OpenMP: one thread", flush=True)
            abi = f"-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}"
            flags = [*CXX_FLAGS, *OPENMP[family], abi]
            flags += shlex.split(os.environ.get("CXXFLAGS", ""))
            ops, build = self.extensions
            ops.extra_compile_args = {"cxx": flags}
            cuda_sources = glob("csrc/**/*.cu")
            cuda_version = nvcc.choose(cuda_sources, os.environ["CXX"])
            if cuda_version:
                ops.sources += [*cuda_sources, *CUDA_HOST_SOURCES]
                ops.libraries += CUDA_LIBRARIES
                ops.extra_compile_args["cxx"] = [*flags, *nvcc.includes()]
                ops.extra_compile_args["nvcc"] = [*nvcc.flags(os.environ["CXX"]), abi]
            build.extra_compile_args = [*flags, f'-DRNNEXT_CXX_FLAGS="{shlex.join(flags)}"']
            super().run()
            library = Path(self.get_ext_fullpath("rnnext._ops"))
            info = BUILD_INFO.format(
                torch=torch.__version__,
                cuda=cuda_version,
                architectures=nvcc.architectures() if cuda_version else "",
                nvcc_flags=shlex.join(nvcc.cell_flags()) if cuda_version else "",
            )
            library.with_name("_build_info.py").write_text(info, encoding="utf-8")
            if not self.inplace:  # where the source tree is not at hand
                for header in CELL_HEADERS:
                    target = library.with_name("include") / Path(header).relative_to("csrc")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / header, target)

        def build_extension(self, ext: Extension) -> None:
            # A folder each: torch writes a build.ninja there for every extension.
            folder, self.build_temp = self.build_temp, os.path.join(self.build_temp, ext.name)
            super().build_extension(ext)
            self.build_temp = folder

    return TorchBuildExt


class BuildExtWithoutTorch(build_ext):
    """Metadata and source distributions need no torch; libraries do."""

    def run(self) -> None:
        requirement = checks.torch_requirement()
        raise checks.fail(
            "building rnnext without isolation needs torch in the environment:\n"
            f"    python -m pip install '{requirement}'\nor leave out --no-build-isolation."
        )


has_torch = importlib.util.find_spec("torch") is not None
setup(
    ext_modules=[
        Extension(
            "rnnext._ops",
            sorted({*glob("csrc/**/*.cpp")} - {BUILD_SOURCE, *CUDA_HOST_SOURCES}),
            libraries=["torch_cpu", "c10"],
            language="c++",
        ),
        Extension("rnnext._build", [BUILD_SOURCE], language="c++"),
    ],
    cmdclass={"build_ext": torch_build_ext() if has_torch else BuildExtWithoutTorch},
)
