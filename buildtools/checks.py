"""What a machine and its Python need to build rnnext: checked before anything is downloaded.

setup.py and the build backend call this; the Makefile runs it:

    python checks.py                 says what the machine lacks, if anything
    python checks.py --requirements  prints what a build without isolation needs beside it

A Python that is too old reads this file too, so that it can say so: nothing newer than 3.7 here.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHONS = ((3, 11), (3, 12))
COMPILERS = ("c++", "g++", "clang++")  # in this order, unless CXX names one
OLDEST_COMPILER = {"g++": 10, "clang++": 14}  # for C++20


def fail(message: str) -> SystemExit:
    """To be raised: the message and no traceback, so that pip and make show it as it stands."""
    return SystemExit(f"\nerror: {message}\n")


def pyproject() -> dict:
    import tomllib  # new in Python 3.11

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)


def torch_requirement() -> str:
    """What rnnext runs with is what it is built with: "torch>=2.11,<2.14"."""
    return next(d for d in pyproject()["project"]["dependencies"] if re.match(r"torch\b", d))


def release(version: str) -> "tuple[int, ...]":
    """The numbers of a version: "2.13.0+cpu" gives (2, 13, 0)."""
    return tuple(int(part) for part in re.split(r"[^\d.]", version)[0].split("."))


def check_python() -> None:
    """rnnext is made for the running Python and its platform."""
    if sys.version_info[:2] not in PYTHONS:
        raise fail(
            "rnnext needs Python 3.11 or 3.12; {} is Python {}.{}.{}. Name another, as in\n"
            "    make train PYTHON=python3.12\n"
            "    python3.12 -m pip install -e .".format(sys.executable, *sys.version_info[:3])
        )
    if not sys.platform.startswith("linux"):
        raise fail(f"rnnext builds on Linux; this is {sys.platform}. On Windows, use WSL.")


def check_venv() -> None:
    """Virtual environments can be made: Debian ships that part of Python separately."""
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        python = "python{}.{}".format(*sys.version_info[:2])
        raise fail(
            f"{sys.executable} cannot make virtual environments. On Debian and Ubuntu:\n"
            f"    apt install {python}-venv"
        )


def check_headers() -> None:
    """Python's C headers are installed."""
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        python = "python{}.{}".format(*sys.version_info[:2])
        raise fail(
            f"Python's headers are missing, there is no {header}\n"
            f"On Debian and Ubuntu:\n    apt install {python}-dev\n"
            f"On Fedora:\n    dnf install {python}-devel"
        )


def find_compiler() -> str:
    """The C++ compiler's command: CXX if set, else the first of c++, g++ and clang++."""
    named = os.environ.get("CXX", "").strip()
    for command in [named] if named else COMPILERS:
        if shutil.which(shlex.split(command)[0]):
            return command
    raise fail(
        f"there is no C++ compiler: looked for {named or ', '.join(COMPILERS)}. Install g++ 10 or "
        "clang++ 14, or newer. On Debian and Ubuntu:\n"
        "    apt install g++\n"
        "or name yours: CXX=/path/to/g++"
    )


def compiler_version(command: str) -> "tuple[str, int]":
    """Family and major version of a compiler, by what it predefines: ("g++", 12)."""
    macros = subprocess.run(
        [*shlex.split(command), "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        text=True,
    ).stdout
    for family, macro in (("clang++", "__clang_major__"), ("g++", "__GNUC__")):  # clang has both
        found = re.search(rf"^#define {macro} (\d+)$", macros, re.MULTILINE)
        if found:
            return family, int(found.group(1))
    raise fail(f"{command} is no g++ or clang++ that can compile C++. Name one: CXX=g++")


def check_compiler() -> "tuple[str, str]":
    """There is a C++ compiler, new enough. Returns its command and its family."""
    command = find_compiler()
    family, major = compiler_version(command)
    if major < OLDEST_COMPILER[family]:
        raise fail(
            f"{command} is {family} {major}; rnnext needs g++ 10 or clang++ 14, or newer. "
            "Name another: CXX=g++-12"
        )
    return command, family


def check_tools() -> None:
    """setuptools is new enough and ninja there: not a matter of course without isolation."""
    import setuptools

    requires = pyproject()["build-system"]["requires"]
    oldest = next(r for r in requires if r.startswith("setuptools")).partition(">=")[2]
    if release(setuptools.__version__) < release(oldest) or not shutil.which("ninja"):
        raise fail(
            f"a build without isolation needs {' and '.join(requires)} in the environment:\n"
            f"    python -m pip install {shlex.join(requires)}\n"
            "or leave out --no-build-isolation."
        )


def check_torch(version: str, folder: str) -> None:
    """The torch to build against, found in `folder`, is of a minor version that rnnext takes."""
    requirement = torch_requirement()
    oldest, above = (release(bound) for bound in re.findall(r"[<>]=?([\d.]+)", requirement))
    if not oldest <= release(version)[:2] < above:
        raise fail(
            f"rnnext needs {requirement}; torch {version} is installed in\n    {folder}\n"
            f"Put one there that fits:\n    python -m pip install '{requirement}'"
        )


if __name__ == "__main__":
    check_python()
    if sys.argv[1:] == ["--requirements"]:
        print(*pyproject()["build-system"]["requires"], torch_requirement(), sep="\n")
    else:
        check_venv()
        check_headers()
        check_compiler()
