"""How written cells are compiled, cached, shared between processes, and done without."""

import os
import re
import stat
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels import run_python

from rnnext import ops, reference
from rnnext.codegen import build

CELL = """\
import torch, rnnext
SLOPE = 0.5
def squash(x):
    return torch.tanh(x)
class {name}(rnnext.Recurrent):
    gates = ("a",)
    constants = {{"leak": 0.25}}
    def step(a, h, leak):
        return SLOPE * (1 - leak) * h + leak * squash(a)
"""


def define(text: str = CELL, name: str = "Mine") -> Any:
    """A class that is written in a text."""
    module = types.ModuleType("made")
    exec(text.format(name=name), module.__dict__)
    return getattr(module, name)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes can import the module `mine`: a small one, which loads quickly."""
    (tmp_path / "mine.py").write_text(CELL.format(name="Mine"))
    monkeypatch.syspath_prepend(tmp_path)


def compiled_name(layer: Any) -> str:
    compiled = build.compile(layer.declaration)
    assert compiled is not None
    return compiled.name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cells"
    monkeypatch.setenv("RNNEXT_CACHE", str(folder))
    return folder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is built."""
    names: list[str] = []
    build_one = build._build

    def counted(folder: Path, *args: Any) -> None:
        names.append(folder.name)
        build_one(folder, *args)

    monkeypatch.setattr(build, "_build", counted)
    return names


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the names of cells are wanted."""
    monkeypatch.setattr(build, "_build", lambda *args: None)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """The compiler is looked for again, and once more afterwards."""
    build._compiler.cache_clear()
    yield
    build._compiler.cache_clear()


def folders(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_a_cell_is_built_once_and_found_again(cache: Path, built: list[str]) -> None:
    first, again = define()(3, 4), define()(3, 4)  # two classes of the same text
    assert not built
    assert not cache.exists()
    x = torch.randn(5, 2, 3)
    first(x)
    (name,) = built
    first(x)
    again(x)
    assert built == [name] == folders(cache)
    assert re.fullmatch(r"Mine_[0-9a-f]{16}", name)
    assert {"cell.h", "cell.so"} <= {path.name for path in (cache / name).iterdir()}


FRESH = """
import os, sys, torch
from mine import Mine
torch.set_num_threads(2)
layer, x = Mine(64, 64), torch.randn(20, 8, 64)
y, _ = layer(x)
y.sum().backward()
slow = ("sympy", "torch._dynamo", "torch._inductor", "rnnext.codegen.trace")
loaded = [name for name in slow if name in sys.modules]
assert not loaded, loaded
child = os.fork()
if child == 0:
    again, _ = layer(x)
    again.sum().backward()
    assert torch.equal(y, again)
    Mine(64, 64, leak=0.5)(x)[0].sum().backward()  # compiled here
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_new_process_loads_what_is_cached_and_little_else_and_forks(
    cache: Path, mine: None
) -> None:
    compiled = build.compile(define()(1, 1).declaration)
    assert compiled is not None
    before = (compiled.folder / "cell.so").stat().st_mtime_ns
    result = run_python(FRESH)
    assert result.returncode == 0, result.stderr
    assert (compiled.folder / "cell.so").stat().st_mtime_ns == before
    assert len(folders(cache)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SLOPE = 0.5", "SLOPE = 0.75"),
        ("return torch.tanh(x)", "return torch.sin(x)"),
        ("squash(a)\n", "squash(a) - h\n"),
        ('"leak": 0.25', '"leak": 0.5'),
        ('gates = ("a",)', 'input_gates = ("a",)'),
    ],
)
def test_whatever_changes_a_cell_changes_its_name(
    old: str, new: str, cache: Path, unbuilt: None
) -> None:
    text = CELL.replace(old, new)
    assert text != CELL
    assert compiled_name(define(text)(1, 1)) != compiled_name(define()(1, 1))


NOISE = CELL.replace("(a, h,", "(a, h, e,").replace("- leak)", "- e)")


def test_what_the_arguments_of_a_step_are_is_in_the_name(cache: Path, unbuilt: None) -> None:
    """The step alone does not say it, nor what it is for noise to have a probability."""
    parts = [
        'noise = {{"e": rnnext.Bernoulli(0.25)}}',
        'noise = {{"e": rnnext.Bernoulli("leak")}}; constants = {{"leak": 0.5}}',
        'noise = {{"e": rnnext.Bernoulli(0.75)}}',
        'noise = {{"e": rnnext.Bernoulli(0.75, per="sequence")}}',
        'noise = {{"e": rnnext.Bernoulli(0.75, size=1)}}',
        'noise = {{"e": rnnext.Dropout(0.75)}}',
        'noise = {{"e": rnnext.Normal(0.75, 1)}}',
        'noise = {{"e": rnnext.Normal(0.75, 2)}}',
        'params = {{"e": 1}}',
        'params = {{"e": rnnext.Param(1, size=1)}}',
        'input_gates = ("e",)',
        'gates = ("a", "e")',
    ]
    names = []
    for part in parts:
        text = NOISE.replace("    def step", f"    {part}\n    def step")
        names.append(compiled_name(define(text)(1, 1)))
    assert len({*names}) == len(names)


def test_a_name_follows_the_values_of_constants_but_not_the_layout(
    cache: Path, unbuilt: None
) -> None:
    mine = define()
    spread = CELL.replace("SLOPE *", "(  # spread\n            SLOPE *").replace(
        "squash(a)\n", "squash(a)\n        )\n"
    )
    assert compiled_name(mine(1, 1)) == compiled_name(define(spread)(1, 1))
    assert compiled_name(mine(1, 1)) == compiled_name(mine(1, 1, leak=0.25))
    assert compiled_name(mine(1, 1)) != compiled_name(mine(1, 1, leak=0.5))
    assert compiled_name(mine(1, 1)) != compiled_name(define(name="Other")(1, 1))


def test_classes_of_one_name_and_one_class_of_several_constants() -> None:
    layers = [define()(3, 4), define(CELL.replace("torch.tanh", "torch.sin"))(3, 4)]
    layers.append(type(layers[0])(3, 4, leak=0.5))
    x = torch.randn(5, 2, 3)
    results = []
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        expected = reference.rnn(layer.declaration, x, [], list(layer.parameters()))[0]
        results.append(layer(x)[0])
        torch.testing.assert_close(results[-1], expected)
        assert not any(torch.equal(results[-1], other) for other in results[:-1])


def test_names_of_any_alphabet(cache: Path) -> None:
    text = CELL.replace("leak", "λ").replace("squash", "σ").replace('"a"', '"größe"')
    text = text.replace("(a, h,", "(größe, h,").replace("σ(a)", "σ(größe)")
    layer, x = define(text, "Größe")(3, 4), torch.randn(5, 2, 3)
    expected = reference.rnn(layer.declaration, x, [], list(layer.parameters()))[0]
    torch.testing.assert_close(layer(x)[0], expected)


RACE = """
import torch
from mine import Mine
torch.manual_seed(0)
y, _ = Mine(3, 4)(torch.ones(5, 2, 3))
print(y.sum().item())
"""


def test_processes_that_build_the_same_cell_at_once(cache: Path, mine: None) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, results
    assert len({output for output, _ in results}) == 1
    assert folders(cache) == [compiled_name(define()(1, 1))]


def test_threads_that_make_the_same_layer_at_once(cache: Path, built: list[str]) -> None:
    kind, x, results = define(), torch.randn(5, 2, 3), []
    start = threading.Barrier(4)

    def work() -> None:
        torch.manual_seed(0)  # of this thread's layer: initial values do not matter below
        start.wait()
        layer = kind(3, 4)
        expected = reference.rnn(layer.declaration, x, [], list(layer.parameters()))[0]
        results.append((layer(x)[0] - expected).abs().max().item())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert max(results) < 1e-5
    assert len(built) == 1


DAMAGED = """
import torch
from mine import Mine
from rnnext import reference
from rnnext.codegen import build
x = torch.randn(5, 2, 3)
for leak in (0.0, 0.5, 0.75, 1.0):
    layer = Mine(3, 4, leak=leak)
    folder = build.compile(layer.declaration).folder
    expected = reference.rnn(layer.declaration, x, [], list(layer.parameters()))[0]
    try:
        torch.testing.assert_close(layer(x)[0], expected)
    except RuntimeError as error:
        assert str(folder) in str(error), error
"""


def test_a_damaged_library_is_named_or_built_again(cache: Path, mine: None) -> None:
    libraries, kind = [], define()
    for leak in (0.0, 0.5, 0.75, 1.0):
        compiled = build.compile(kind(1, 1, leak=leak).declaration)
        assert compiled is not None
        libraries.append(compiled.folder / "cell.so")
    content = libraries[0].read_bytes()
    for library, damaged in zip(
        libraries, (b"", b"nothing", content[: len(content) // 2], content), strict=True
    ):
        library.write_bytes(damaged)
    result = run_python(DAMAGED)
    assert result.returncode == 0, (result.returncode, result.stderr)


def test_a_cell_without_its_library_is_built_again(cache: Path, built: list[str]) -> None:
    compiled = build.compile(define()(1, 1).declaration)
    assert compiled is not None
    (compiled.folder / "cell.so").unlink()
    assert build.compile(define()(1, 1).declaration) == compiled
    assert (compiled.folder / "cell.so").exists()
    assert len(built) == 2


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises((OSError, RuntimeError), match="RNNEXT_CACHE"):
        define()(3, 4)(torch.randn(5, 2, 3))


def compiler_of(folder: Path, script: str) -> Path:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_a_compiler_says_is_reported_and_later_calls_try_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    script = '[ "$1" = --version ] && echo 1.0 && exit 0\necho "no luck today" >&2; exit 1'
    monkeypatch.setenv("CXX", str(compiler_of(tmp_path, script)))
    layer, x = define()(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="compiling the cell failed") as caught:
        layer(x)
    assert "no luck today" in str(caught.value)
    kept = re.search(r"its files are in (\S+),", str(caught.value))
    assert kept is not None
    assert (Path(kept[1]) / "cell.h").exists()
    monkeypatch.delenv("CXX")
    build._compiler.cache_clear()
    expected = reference.rnn(layer.declaration, x, [], list(layer.parameters()))[0]
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "/nonexistent/c++ -O1"}, r"no C\+\+ compiler \(looked for /nonexistent/c\+\+"),
        ({"PATH": "", "CXX": ""}, r"no C\+\+ compiler \(looked for c\+\+, g\+\+, clang\+\+; name"),
        ({"RNNEXT_COMPILE": "0"}, "RNNEXT_COMPILE=0: cells written in Python run step by step"),
    ],
    ids=["CXX", "PATH", "RNNEXT_COMPILE"],
)
def test_without_a_compiler_layers_run_on_the_reference_after_one_warning(
    variables: dict[str, str],
    reason: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_compiler: None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=reason) as caught:
        run_without_a_compiler()
    assert len(caught) == 1
    assert not cache.exists()


def run_without_a_compiler() -> None:
    for name in ("Mine", "Other"):
        layer = define(name=name)(3, 4).double()
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        y, _ = layer(x)
        weights = list(layer.parameters())
        assert torch.equal(y, reference.rnn(layer.declaration, x, [], weights)[0])
        (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights[:2])


def test_second_derivatives_of_built_in_cells_without_a_compiler(
    cache: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    monkeypatch.setenv("RNNEXT_COMPILE", "0")
    monkeypatch.setattr(build, "_NAMES", {})
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(9, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def second(run: Callable[..., Any]) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(
            run("GRU", x, [], weights)[0].sin().sum(), [x, *weights], create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in first), [x, *weights])

    with pytest.warns(UserWarning, match="RNNEXT_COMPILE=0"):
        result = second(ops.rnn)
    for a, b in zip(result, second(reference.rnn), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
