"""Every file that a run leaves behind, and how it is read again.

================== ==================================================================
config.json        the options, facts about the text, the vocabulary's fingerprint
vocab.txt          the vocabulary: one word a line, in the order of their numbers
cell.py            the file that defines the cell, if that is none of the built-in ones
model.safetensors  the weights of the best epoch so far
metrics.jsonl      one JSON object for each epoch
train.log          what the run said, and a generated line for each epoch
curves.png         perplexity and learning rate by epoch
result.json        written last: a folder without it holds an unfinished run
================== ==================================================================

A file is either not there or whole, however a run ends: it is written under another name first and
then renamed. metrics.jsonl and train.log only grow, and reach the disk line by line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model

from .cells import Cell, load_cell
from .errors import UserError, require
from .model import LanguageModel
from .options import Impl, ModelOptions, TrainOptions
from .vocabulary import EOS, UNK, Vocabulary

FORMAT = 2  # of config.json; a reader refuses what it does not know
READABLE = (1, FORMAT)  # 1 had built-in cells only


class RunFolder:
    """A folder with one training run in it.

    Writing raises OSError where the disk refuses; `train` turns that into a message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(out: Path | None, cell: str) -> RunFolder:
        """Make the folder for a new run.

        Args:
            out: where; None for the first free of `runs/<cell>-1`, `runs/<cell>-2`, ...
            cell: names the folder if `out` is None.

        Raises:
            UserError: `out` holds something already or cannot be written.
        """
        numbered = (Path("runs") / f"{cell.lower()}-{number}" for number in count(1))
        path = next(path for path in numbered if not path.exists()) if out is None else out
        run = RunFolder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if run.file("result.json").exists():
                raise UserError(f"{path} holds a finished run: choose another --out")
            if run.file("config.json").exists():
                raise UserError(
                    f"{path} holds a run that did not finish; `rnnext evaluate --run {path}` can "
                    "use its weights: choose another --out or remove the folder"
                )
            require(not any(path.iterdir()), f"{path} is not empty: choose another --out")
            run.file("train.log").touch()
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror}") from error
        return run

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def write(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all."""
        self._replace(name, lambda path: path.write_bytes(content))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write one JSON file; a number that JSON has no word for (NaN, infinity) becomes null."""
        self.write(name, (json.dumps(finite(value), indent=2) + "\n").encode())

    def write_start(
        self, options: TrainOptions, cell: Cell, vocabulary: Vocabulary, corpus: dict[str, Any]
    ) -> None:
        """Write config.json, vocab.txt and cell.py; `corpus` are facts about the text."""
        self.write("vocab.txt", "".join(f"{word}\n" for word in vocabulary.words).encode())
        model = dataclasses.asdict(options.model)
        if cell.file is not None:
            self.write("cell.py", cell.source)
            model["cell"] = f"{cell.file.resolve()}:{cell.name}"
        data = options.text.data
        config = {
            "format": FORMAT,
            "data": None if data is None else str(data.resolve()),
            "corpus": corpus,
            "vocabulary": {"words": len(vocabulary), "sha256": vocabulary.fingerprint},
            "model": model,
            "training": dataclasses.asdict(options.training),
            "machine": dataclasses.asdict(options.machine),
            "compile": options.compile,
        }
        self.write_json("config.json", config)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl and bring it to the disk."""
        with self.file("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def save_weights(self, model: LanguageModel, vocabulary: Vocabulary) -> None:
        """Write model.safetensors, marked with the vocabulary that the weights belong to."""
        mark = {"vocabulary_sha256": vocabulary.fingerprint}
        try:
            self._replace("model.safetensors", lambda path: save_model(model, str(path), mark))
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error

    def load_weights(self, model: LanguageModel, vocabulary: Vocabulary) -> None:
        """Fill `model` with the saved weights.

        Raises:
            UserError: there are none, they are damaged, or they are not of this vocabulary or of
                a model of this shape.
        """
        path = self.file("model.safetensors")
        require(
            path.exists(),
            f"{self.path} has no model.safetensors: no epoch of that run was finished",
        )
        try:
            with safe_open(path, framework="pt") as file:
                mark = (file.metadata() or {}).get("vocabulary_sha256")
            require(
                mark == vocabulary.fingerprint,
                f"{path} was trained with another vocabulary than the one in vocab.txt",
            )
            load_model(model, path, device=str(model.device))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read or is damaged: {error}") from error
        except RuntimeError as error:  # PyTorch's word for names or shapes that do not match
            raise UserError(f"{path} is not the model that config.json describes") from error

    def load_config(self) -> dict[str, Any]:
        """Read config.json.

        Raises:
            UserError: this is no run folder, or the file is damaged.
        """
        path = self.file("config.json")
        require(self.path.is_dir(), f"there is no folder {self.path}")
        require(path.exists(), f"{self.path} is no run folder: it has no config.json")
        try:
            config: dict[str, Any] = json.loads(path.read_bytes())
            known = config["format"] in READABLE
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read or is damaged") from error
        require(known, f"{path} was written by another version of rnnext")
        return config

    def load_vocabulary(self) -> Vocabulary:
        """Read vocab.txt.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self.file("vocab.txt")
        try:
            words = path.read_bytes().decode().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read or is damaged") from error
        vocabulary = Vocabulary(tuple(words[:-1]))
        good = (
            words[:2] == [EOS, UNK] and words[-1] == "" and len(vocabulary.ids) == len(vocabulary)
        )
        require(
            good, f"{path} is damaged: it must list {EOS}, {UNK} and then other words, once each"
        )
        return vocabulary

    def load_model(self, device: torch.device, impl: Impl) -> tuple[LanguageModel, Vocabulary]:
        """The trained model, in evaluation mode, and its vocabulary.

        Raises:
            UserError: a file is missing, damaged or does not belong to the others; a written cell
                does not load.
        """
        config = self.load_config()
        try:
            options = ModelOptions(**config["model"])
            options.check()
        except (KeyError, TypeError, UserError) as error:
            path = self.file("config.json")
            raise UserError(f"{path} is damaged: its model section makes no sense") from error
        vocabulary = self.load_vocabulary()
        cell = self._load_cell(options, impl)
        model = LanguageModel(options, len(vocabulary), impl, cell).to(device)
        self.load_weights(model, vocabulary)
        return model.eval(), vocabulary

    def _load_cell(self, options: ModelOptions, impl: Impl) -> Cell:
        """The cell; a written one from the folder's own copy of its file."""
        if options.cell_file is None:
            return load_cell(options, impl)
        copy = dataclasses.replace(options, cell=f"{self.file('cell.py')}:{options.cell_name}")
        return load_cell(copy, impl, [options.cell_file.parent])

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        temporary = self.file(f".{name}.part")
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors leaves a file that only its owner can read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.file(name))
        finally:
            temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The same value, with None for each float in it that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
