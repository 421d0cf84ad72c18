"""Small texts, and the command line called in this process."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnext.cli import main

Train = Callable[..., int]
WriteFolder = Callable[[str, str, str], Path]
Metrics = Callable[[Path], list[dict[str, Any]]]

SMALL = [
    *("--impl", "torch", "--threads", "1"),
    *("--embedding", "16", "--hidden", "16", "--batch-size", "4", "--bptt", "7"),
]


def sentences(count: int, seed: int) -> str:
    """Lines of a little grammar: `the-cat sees a-bird today .`"""
    draw = random.Random(seed)
    subjects = ["the-cat", "the-dog", "a-bird", "my-friend"]
    lines = [
        f"{draw.choice(subjects)} {draw.choice(('sees', 'likes', 'follows'))} "
        f"{draw.choice(subjects)} {draw.choice(('today .', 'now .', '.'))}\n"
        for _ in range(count)
    ]
    return "".join(lines)


def write(folder: Path, train: str, valid: str, test: str) -> Path:
    """Make a data folder with these three texts."""
    for name, text in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def command(data: object, run: object, *options: object) -> int:
    """`rnnext train` of a small model; options given here win."""
    return main([str(word) for word in ("train", "--data", data, "--out", run, *SMALL, *options)])


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give other tests the threads back that `--threads` took."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of Penn Treebank: 120, 30 and 30 sentences."""
    folder = tmp_path_factory.mktemp("data")
    return write(folder, sentences(120, 1), sentences(30, 2), sentences(30, 3))


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model. Tests read it or copy it; none may change it."""
    run = tmp_path_factory.mktemp("runs") / "small"
    assert command(data, run, "--epochs", 3) == 0
    return run


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Make a data folder from a training, a validation and a test text."""
    return lambda train, valid, test: write(tmp_path, train, valid, test)


@pytest.fixture
def train() -> Train:
    """`rnnext train` of a small model: data, run folder, more options; the exit status."""
    return command


@pytest.fixture
def metrics() -> Metrics:
    """The lines of a run's metrics.jsonl, without what no seed repeats."""

    def read(run: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        clock = ("seconds", "tokens_per_second")
        return [{key: value for key, value in row.items() if key not in clock} for row in rows]

    return read


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the command line, expect one line on stderr and exit status 2; returns the line."""

    def call(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch("rnnext: .+\n", error)
        return error

    return call
