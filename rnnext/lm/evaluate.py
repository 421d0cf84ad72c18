"""The command `rnnext evaluate`: how well a trained model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import machine
from .data import load_corpus, read_lines
from .errors import UserError, require
from .options import EvaluateOptions
from .perplexity import score
from .run_folder import RunFolder
from .vocabulary import Encoded


def evaluate(options: EvaluateOptions) -> int:
    """Run `rnnext evaluate`: print loss, perplexity and bits per character; return the exit status.

    Raises:
        UserError: an option makes no sense, or the run folder or the text cannot be used.
    """
    options.check()
    device = machine.use(options.machine)
    run = RunFolder(options.run)
    model, vocabulary = run.load_model(device, options.machine.impl)
    if options.data is not None:
        path = options.data / f"{options.split}.txt" if options.data.is_dir() else options.data
        name, text = str(path), vocabulary.encode(read_lines(path))
    else:
        config = run.load_config()
        corpus = load_corpus(data_path(config))
        name, text = f"{options.split} split", vocabulary.encode(corpus.lines(options.split))
        print(corpus.source)
        warn_if_changed(config, options.split, text)
    require(
        options.batch_size <= len(text.tokens),
        f"--batch-size {options.batch_size} is more than the {len(text.tokens)} tokens of {name}",
    )
    result = score(model, text, options.batch_size)
    print(f"{name}: {describe(text)}")
    print(f"loss                {result.loss:.4f} nats per token")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    return 0


def describe(text: Encoded) -> str:
    """What a text holds, and what share of it the vocabulary lacks."""
    about = f"{len(text.tokens):,} tokens, {text.unknown_share:.2%} of the words unknown"
    return about + (" (predicted as <unk>)" if text.unknown else "")


def data_path(config: dict[str, Any]) -> Path | None:
    """Where a run's text is: an argument for `load_corpus`."""
    data = config.get("data")
    if data is None:
        return None
    if not isinstance(data, str):
        raise UserError("config.json is damaged: data must be a path or null")
    return Path(data)


def warn_if_changed(config: dict[str, Any], split: str, text: Encoded) -> None:
    """Say so if a split is not the one that the run knew."""
    then = config.get("corpus", {}).get(split, {}).get("tokens")
    if then != len(text.tokens):
        print(f"note: the text has changed: this split had {then} tokens when the run was trained")
