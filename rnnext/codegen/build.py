"""Compile written cells and register them with the op; a cache keeps what was compiled.

Everything that decides what a compiled cell is (the recorded step, the generator and the headers
it builds on, compiler, flags, instruction set) is hashed into its name, and its folder in the cache
has that name: nothing in it is ever out of date.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rnnext import reference
from rnnext.codegen.errors import cell_error
from rnnext.codegen.record import record

if TYPE_CHECKING:
    from rnnext.cell import Declaration

_PACKAGE = Path(__file__).parent.parent
_LOCK = threading.RLock()
_NAMES: dict[tuple[Declaration, int], str | None] = {}
TANGENTS: dict[str, Declaration] = {}
"""Of each jvp cell, by its name, the cell whose derivative it is."""


@dataclass(frozen=True)
class Compiled:
    """A cell in the cache.

    Attributes:
        name: by which the op knows it.
        folder: with ``cell.h``, the generated code, and ``cell.so``; and one for GPUs (cuda.py).
    """

    name: str
    folder: Path


def kernel(declaration: Declaration, streams: int = 1) -> str | None:
    """The name by which the op knows a cell; compiled at the first call, unless it is cached.

    Args:
        declaration: the cell.
        streams: 2 for its jvp cell, which carries values and tangents.

    Returns:
        The name; None where nothing can be compiled, after one warning: no compiler, or
        RNNEXT_COMPILE=0.

    Raises:
        CellError: a step that can't be compiled.
        RuntimeError: the compiler failed.
    """
    with _LOCK:
        key = (declaration, streams)
        if key not in _NAMES:
            compiled = _elsewhere(os.getpid()).submit(_loaded, declaration, streams).result()
            if compiled is not None:
                if streams == 1:  # for where there are no kernels
                    reference.CELLS[compiled.name] = declaration
                else:
                    TANGENTS[compiled.name] = declaration
            _NAMES[key] = compiled.name if compiled else None
        return _NAMES[key]


def load_cached(name: str) -> bool:
    """Load a cell by its name if it is in the cache; whether it is.

    Raises:
        RuntimeError: it was compiled for another version of rnnext or instruction set.
    """
    compiled = cached(name)
    if compiled is None:
        return False
    _load(compiled)
    return True


def cached(name: str) -> Compiled | None:
    """A cell in the cache, by its name; None where it is not there."""
    compiled = Compiled(name, cache_folder() / name)
    # No path to a library elsewhere.
    return compiled if name.isidentifier() and whole(compiled.folder) else None


@functools.cache
def _elsewhere(process: int) -> ThreadPoolExecutor:
    """A thread of this process for recording and tracing. The one that asks may be in the middle of
    a transform, a trace or a mode of autograd, and these belong to a thread. It is always the same
    one: torch 2.11 does not survive fake tensors in a second one after the first has ended.
    """
    return ThreadPoolExecutor(1)


def check(declaration: Declaration) -> None:
    """Raise what compiling a cell would, where it can be compiled at all and is not yet.

    Raises:
        CellError: a step that can't be compiled.
    """
    with _LOCK:
        _elsewhere(os.getpid()).submit(_check, declaration).result()


def unused_noise(declaration: Declaration) -> list[str]:
    """The noise that a step makes no use of, with the values that its constants have.

    Raises:
        CellError: a step that can't be recorded.
    """
    if not declaration.noise:
        return []
    with _LOCK:
        graph = _elsewhere(os.getpid()).submit(record, declaration).result().graph
    used = {node.target for node in graph.nodes if node.op == "placeholder" and node.users}
    return [name for name in declaration.noise if name not in used]


def compile(declaration: Declaration, streams: int = 1) -> Compiled | None:
    """The compiled cell in the cache, put there if need be; None as for `kernel`."""
    compiler = _compiler()
    if compiler is None:
        return None
    compiled = _place(declaration, streams, compiler)
    if not whole(compiled.folder):
        with only_process(compiled.folder):
            if not whole(compiled.folder):  # another one may have been quicker
                _build(compiled.folder, *_generate(declaration, streams, compiled.name), compiler)
    return compiled


def _check(declaration: Declaration) -> None:
    compiler = _compiler()
    if compiler is None:
        record(declaration)
        return
    compiled = _place(declaration, 1, compiler)
    if not whole(compiled.folder):
        _generate(declaration, 1, compiled.name)


def whole(folder: Path) -> bool:
    """Whether a library is there, all of it: to load one that was cut off is a crash."""
    try:
        size = int((folder / "size").read_text())
        return (folder / "cell.so").stat().st_size == size
    except (OSError, ValueError):
        return False


def _place(declaration: Declaration, streams: int, compiler: tuple[str, ...]) -> Compiled:
    """Name and folder of a cell, compiled or not."""
    isa = torch.ops.rnnext.instruction_set()
    parts = (_sources(), torch.__version__, compiler, _version(compiler), _flags(), isa, streams)
    text = "\n".join(map(str, (*parts, declaration.name, record(declaration).text)))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = f"{declaration.name}{'_jvp' if streams == 2 else ''}_{digest}"
    return Compiled(name, cache_folder() / name)


@functools.lru_cache(maxsize=64)
def _generate(declaration: Declaration, streams: int, name: str) -> tuple[str, str]:
    """The header, and the name of the struct in it."""
    # Not imported where the cell is cached: it takes longer than all the rest.
    emit, trace = (import_module(f"rnnext.codegen.{module}") for module in ("emit", "trace"))
    program = trace.lower(record(declaration), streams)
    if streams == 1 and [n.width for n in program.batch_sums] != list(declaration.batch_sums):
        raise cell_error(
            declaration,
            "its step adds up rows of the batch: a step is the same for each row. Means over the "
            "units of a row (dim=-1, torch.nn.functional.layer_norm) are supported; of a batch "
            "there is rnnext.cells.BatchNormLSTM",
        )
    return emit.header(program, name), emit.struct_name(program)


def cache_folder() -> Path:
    """RNNEXT_CACHE, or rnnext in the user's cache folder."""
    if named := os.environ.get("RNNEXT_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rnnext"


def headers_folder() -> Path:
    """The headers that a cell includes: in the package, or in the source tree beside it."""
    installed = _PACKAGE / "include"
    return installed if installed.exists() else _PACKAGE.parent / "csrc"


def _loaded(declaration: Declaration, streams: int) -> Compiled | None:
    compiled = compile(declaration, streams)
    if compiled is not None:
        _load(compiled)
    return compiled


def _load(compiled: Compiled) -> None:
    load_library(torch.ops.rnnext.load_cell, compiled.name, compiled.folder)


def load_library(load: Callable[[str], str], name: str, folder: Path) -> None:
    """Load the library in a folder by an op; it must hold the cell of that name."""
    try:
        found = load(str(folder / "cell.so"))
        if found != name:
            raise RuntimeError(f"rnnext: the library of {name} holds {found}")
    except RuntimeError as e:
        raise RuntimeError(f"{e}\nRemove {folder} and try again") from None


@functools.cache
def _compiler() -> tuple[str, ...] | None:
    """The C++ compiler's command: CXX if set, else the first of c++, g++ and clang++."""
    if os.environ.get("RNNEXT_COMPILE") == "0":
        reason = "RNNEXT_COMPILE=0"
    else:
        named = os.environ.get("CXX", "").strip()
        for command in [named] if named else ["c++", "g++", "clang++"]:
            if shutil.which(shlex.split(command)[0]):
                return tuple(shlex.split(command))
        looked = named or "c++, g++, clang++"
        reason = f"there is no C++ compiler (looked for {looked}; name yours with CXX=...)"
    warnings.warn(
        f"{reason}: cells written in Python run step by step in PyTorch, several times slower",
        stacklevel=2,
    )
    return None


@functools.cache
def _flags() -> tuple[str, ...]:
    """The flags that the built-in cells were compiled with, but for those that concern torch."""
    flags = shlex.split(str(import_module("rnnext._build").cxx_flags))
    return tuple(f for f in flags if f != "-fopenmp" and "_GLIBCXX_" not in f)


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


@functools.cache
def _sources() -> str:
    """What generates cells and what they include, as one digest."""
    digest = hashlib.sha256()
    generator, headers = (_PACKAGE / "codegen").glob("*.py"), headers_folder().glob("**/*")
    included = (file for file in headers if file.suffix in (".h", ".cuh"))
    for file in (*sorted(generator), *sorted(included)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Wait for other processes that build the same cell. A lock ends with its process."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_suffix(".lock"), "w")  # noqa: SIM115
    except OSError as e:
        raise RuntimeError(
            f"compiled cells cannot be kept in {folder.parent}: {e}. Name a folder that can be "
            "written: RNNEXT_CACHE=..."
        ) from e
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_UNIT = """\
#include "cpu/isa/{isa}.h"
#include "cpu/written.h"

#include "cell.h"

RNNEXT_WRITTEN_CELL({struct})
#include "cpu/isa/end.h"
"""

_CUDA_UNIT = """\
#include "cuda/written.cuh"

#include "cell.h"

RNNEXT_WRITTEN_CUDA_CELL({struct})
"""

_NINJA = """\
rule compile
  command = {compiler} {flags} -fPIC {include} -DRNNEXT_CELL_TYPE=$type -c $in -o $out
rule link
  command = {compiler} -shared $in -o $out
build f32.o: compile cell.cpp
  type = float
build f64.o: compile cell.cpp
  type = double
build cell.so: link f32.o f64.o
"""


def _build(folder: Path, header: str, struct: str, compiler: tuple[str, ...]) -> None:
    """Compile a header."""
    isa = torch.ops.rnnext.instruction_set()
    words = {"compiler": compiler, "flags": _flags(), "include": [f"-I{headers_folder()}"]}
    files = {
        "cell.h": header,
        "cell.cpp": _UNIT.format(isa=isa, struct=struct),
        "cell.cu": _CUDA_UNIT.format(struct=struct),  # for GPUs, when it first runs on one
        "build.ninja": _NINJA.format(**escaped(words)),
    }
    put(folder, files, scratch=folder.parent, kept=folder.with_suffix(".failed"))


def escaped(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Words of commands as a file for ninja has them."""
    return {name: shlex.join(text).replace("$", "$$") for name, text in words.items()}


def put(folder: Path, files: Mapping[str, str], scratch: Path, kept: Path) -> None:
    """Build cell.so of files, build.ninja among them; `folder` appears at once and whole, or not at
    all.

    Args:
        folder: where all of it is put.
        files: their texts, by name.
        scratch: the folder to work in, on the same file system.
        kept: where the files are left if they can't be built.

    Raises:
        RuntimeError: a command failed; with what it said.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{folder.name}.") as own:
        work = Path(own) / "cell"
        work.mkdir()
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        result = subprocess.run([_ninja()], cwd=work, capture_output=True, text=True)
        if result.returncode:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work, kept)
            raise RuntimeError(
                f"compiling the cell failed; its files are in {kept}, and RNNEXT_COMPILE=0 runs it "
                f"in PyTorch.\n{result.stdout}{result.stderr}"
            )
        with open(work / "cell.so", "rb") as library:
            os.fsync(library.fileno())
            (work / "size").write_text(str(os.fstat(library.fileno()).st_size))
        shutil.rmtree(folder, ignore_errors=True)  # what is there is not whole
        work.rename(folder)


def _ninja() -> str:
    """The program of the ninja package, or the system's."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("ninja", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError("there is no ninja, which builds cells: python -m pip install ninja")
    return found
