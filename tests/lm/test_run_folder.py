"""What a run leaves behind, and what happens to it when things go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cells_of_a_user
import pytest
import torch
from safetensors.torch import load_file

from rnnext.cli import main
from rnnext.lm.errors import UserError
from rnnext.lm.model import LanguageModel
from rnnext.lm.options import ModelOptions
from rnnext.lm.plot import curves
from rnnext.lm.run_folder import RunFolder, finite
from rnnext.lm.vocabulary import EOS, UNK, Vocabulary

Fails = Callable[..., str]
Train = Callable[..., int]

FILES = {
    *("config.json", "vocab.txt", "model.safetensors", "metrics.jsonl"),
    *("train.log", "curves.png", "result.json"),
}
TORCH = ("--impl", "torch")
VOCABULARY = Vocabulary((EOS, UNK, "a", "b"))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A run folder to do damage to."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_what_a_run_leaves(trained: Path, data: Path) -> None:
    assert {path.name for path in trained.iterdir()} == FILES
    config = json.loads((trained / "config.json").read_text())
    assert config["data"] == str(data.resolve())
    assert config["model"]["hidden"] == 16
    assert config["training"]["bptt"] == 7
    assert config["corpus"]["train"]["tokens"] == sum(
        len(line.split()) + 1 for line in (data / "train.txt").read_text().splitlines()
    )
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len({path.stat().st_mode for path in trained.iterdir()}) == 1
    log = (trained / "train.log").read_text()
    assert log.count("sample: ") == 3
    assert "test perplexity" in log
    assert "epoch   3/3" in log


def test_the_result(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert 1 < result["valid_perplexity"] < 17
    assert 1 < result["test_perplexity"] < 17
    assert result["epochs"] == 3
    assert 1 <= result["best_epoch"] <= 3
    assert result["stopped"] == "finished"
    assert result["threads"] == 1
    assert result["seconds"] > result["training_seconds"] > 0 < result["tokens_per_second"]
    assert result["parameters"] == sum(
        tensor.numel() for tensor in load_file(trained / "model.safetensors").values()
    )
    assert result["versions"]["torch"] == torch.__version__


def test_runs_without_a_name_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [RunFolder.create(None, cell).path for cell in ("GRU", "GRU", "LSTM")]
    assert [str(path) for path in paths] == ["runs/gru-1", "runs/gru-2", "runs/lstm-1"]


def test_no_run_is_overwritten(trained: Path, data: Path, train: Train, fails: Fails) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert "holds a finished run" in fails("train", "--data", data, "--out", trained, *TORCH)
    assert before == {path.name: path.read_bytes() for path in trained.iterdir()}


def test_an_unfinished_run_and_other_files_are_left_alone(
    copy: Path, data: Path, tmp_path: Path, fails: Fails
) -> None:
    (copy / "result.json").unlink()
    assert "did not finish" in fails("train", "--data", data, "--out", copy, *TORCH)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/letter").touch()
    assert "is not empty" in fails("train", "--data", data, "--out", tmp_path / "letters", *TORCH)
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["letter"]


def test_an_unwritable_folder(data: Path, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in fails("train", "--data", data, "--out", tmp_path / "file/run", *TORCH)
    assert "cannot write" in fails("train", "--data", data, "--out", tmp_path / "file", *TORCH)


def test_a_disk_that_fills_up(
    data: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in fails(
        "train", "--data", data, "--out", tmp_path / "run", "--impl", "torch"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.log"]


@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_as_they_were(tmp_path: Path, tied: bool) -> None:
    run = RunFolder.create(tmp_path / "run", "GRU")
    options = ModelOptions(cell="GRU", embedding=4, hidden=4, tied=tied)
    saved, loaded = (LanguageModel(options, len(VOCABULARY), "torch") for _ in range(2))
    run.save_weights(saved, VOCABULARY)
    run.load_weights(loaded, VOCABULARY)
    assert all(
        torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True)
    )
    assert (loaded.decoder.weight is loaded.embedding.weight) == tied


def test_a_write_that_fails_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", "LSTM")
    run.write("note", b"first")

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        run.write("note", b"second")
    assert run.file("note").read_bytes() == b"first"
    assert sorted(path.name for path in run.path.iterdir()) == ["note", "train.log"]


def test_numbers_that_json_has_no_word_for() -> None:
    assert finite({"a": [float("nan"), 1.5], "b": float("inf"), "c": "x"}) == {
        "a": [None, 1.5],
        "b": None,
        "c": "x",
    }


def test_a_plot_of_no_epochs_at_all() -> None:
    assert curves([], "nothing").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("cell", "impl"), [("LSTM", "torch"), (f"{cells_of_a_user.__file__}:Gated", "rnnext")]
)
def test_a_killed_run_keeps_what_it_had(data: Path, tmp_path: Path, cell: str, impl: str) -> None:
    run = tmp_path / "run"
    words = "-m rnnext train --threads 1 --embedding 8 --hidden 8 --epochs 100000"
    options = ("--data", str(data), "--out", str(run), "--cell", cell, "--impl", impl)
    process = subprocess.Popen(
        [sys.executable, *words.split(), *options],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        log, deadline = run / "metrics.jsonl", time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len([json.loads(line) for line in log.read_text().splitlines()]) >= 3
    assert not (run / "result.json").exists()
    assert main(["evaluate", "--run", str(run), "--impl", impl]) == 0


def test_a_run_of_an_earlier_version(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["format"] = 1
    del config["model"]["cell_options"]
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", "--run", str(copy), "--impl", "torch"]) == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap_words(path: Path) -> None:
    words = path.read_text().splitlines()
    words[2], words[3] = words[3], words[2]
    path.write_text("\n".join(words) + "\n")


def replace(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", Path.unlink, "no run folder"),
        ("config.json", truncate, "damaged"),
        ("config.json", replace('"format": 2', '"format": 99'), "another version"),
        ("config.json", replace('"hidden": 16', '"hidden": "wide"'), "damaged"),
        ("config.json", replace('"hidden": 16', '"hidden": 16.5'), "damaged"),
        ("config.json", replace('"hidden": 16', '"hidden": 24'), "not the model"),
        ("config.json", replace('"LSTM"', '"GRU"'), "not the model"),
        ("config.json", replace('"LSTM"', '"GLU"'), "damaged"),
        ("config.json", replace('"LSTM"', "1"), "damaged"),
        ("config.json", replace('"layers": 2', '"storeys": 2'), "damaged"),
        ("config.json", replace('"cell_options": []', '"cell_options": 1'), "damaged"),
        ("config.json", replace('"cell_options": []', '"cell_options": [1]'), "damaged"),
        ("config.json", replace('"cell_options": []', '"cell_options": "a=1"'), "damaged"),
        ("config.json", replace('"cell_options": []', '"cell_options": ["a=1"]'), "LSTM has no a"),
        ("model.safetensors", Path.unlink, "no model.safetensors"),
        ("model.safetensors", truncate, "damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "damaged"),
        ("vocab.txt", Path.unlink, "damaged"),
        ("vocab.txt", truncate, "damaged|another vocabulary"),
        ("vocab.txt", swap_words, "another vocabulary"),
        ("vocab.txt", lambda path: path.write_text("a\nb\n"), "damaged"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_damage_is_one_clear_line(
    copy: Path,
    fails: Fails,
    command: str,
    name: str,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(copy / name)
    error = fails(command, "--run", copy, "--impl", "torch")
    assert any(part in error for part in message.split("|")), error


def test_weights_of_another_vocabulary(copy: Path, tmp_path: Path) -> None:
    run = RunFolder(copy)
    model, vocabulary = run.load_model(torch.device("cpu"), "torch")
    other = Vocabulary((*vocabulary.words[:-1], "stranger"))
    with pytest.raises(UserError, match="another vocabulary"):
        run.load_weights(model, other)
