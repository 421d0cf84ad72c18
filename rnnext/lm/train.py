"""The command `rnnext train`: from options to a run folder with a result in it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from . import machine
from .cells import load_cell
from .data import SPLITS, Corpus, load_corpus
from .errors import UserError, require
from .evaluate import describe
from .generate import sample
from .model import LanguageModel
from .options import Split, TrainOptions
from .perplexity import score
from .plot import curves
from .report import Report
from .run_folder import RunFolder
from .trainer import Stopped, Trainer
from .vocabulary import UNK, UNK_ID, Encoded, Vocabulary

STATUS_DIVERGED = 1
SAMPLE_WORDS = 60


def train(options: TrainOptions) -> int:
    """Run `rnnext train`.

    Everything that can be wrong with the input is found before the run folder is made.

    Returns:
        The exit status: 0 if there is a result, be it after Ctrl-C; 1 if the loss stopped being
        finite (there still is a result if an epoch had ended before).

    Raises:
        UserError: an option makes no sense, the text cannot be used, or the disk refuses to write.
    """
    began = time.monotonic()
    options.check()
    device = machine.use(options.machine)
    cell = load_cell(options.model, options.machine.impl)
    corpus = load_corpus(options.text.data)
    vocabulary, texts = read(options, corpus)
    torch.manual_seed(options.training.seed)
    model = LanguageModel(options.model, len(vocabulary), options.machine.impl, cell).to(device)
    if options.compile:
        model.compile(dynamic=True)  # in place: the weights keep their names
    run = RunFolder.create(options.out, cell.name)
    try:
        run.write_start(options, cell, vocabulary, {s: facts(texts[s]) for s in SPLITS})
        with Report(run.file("train.log")) as report:
            report.say(corpus.source)
            introduce(report, texts, vocabulary, model, options)
            report.say(f"everything about this run goes to {run.path}")
            trainer = Trainer(
                model, vocabulary, texts["train"], texts["valid"], options.training, run, report
            )
            stopped = trainer.fit()
            if trainer.has_weights:
                finish(trainer, stopped, texts, options, began)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error.strerror or error}") from error
    return STATUS_DIVERGED if stopped == "diverged" else 0


def read(options: TrainOptions, corpus: Corpus) -> tuple[Vocabulary, dict[Split, Encoded]]:
    """The vocabulary of the training split, and the three splits in its numbers.

    Raises:
        UserError: too few words for a vocabulary, or too few tokens for the batch size.
    """
    min_count = options.text.min_count
    if min_count is None:
        min_count = corpus.default_min_count
    vocabulary = Vocabulary.build(corpus.train, min_count, options.text.max_vocab)
    texts = {split: vocabulary.encode(corpus.lines(split)) for split in SPLITS}
    tokens = len(texts["train"].tokens)
    require(
        options.training.batch_size <= tokens,
        f"--batch-size {options.training.batch_size} is more than the {tokens} tokens of the "
        "training split",
    )
    return vocabulary, texts


def facts(text: Encoded) -> dict[str, int]:
    """What config.json says about a split."""
    return {
        "tokens": len(text.tokens),
        "words": text.words,
        "unknown_words": text.unknown,
        "characters": text.characters,
    }


def introduce(
    report: Report,
    texts: dict[Split, Encoded],
    vocabulary: Vocabulary,
    model: LanguageModel,
    options: TrainOptions,
) -> None:
    """Say what is about to be trained, on what."""
    for split in SPLITS:
        report.say(f"  {split:5}  {describe(texts[split])}")
    if UNK_ID not in texts["train"].tokens and any(text.unknown for text in texts.values()):
        report.say(
            f"note: the training split has no {UNK}, so that nothing is learnt about the unknown "
            "words of the others: consider --min-count 2"
        )
    shape = options.model
    cell = " ".join((shape.cell_name, *shape.cell_options))
    report.say(
        f"vocabulary of {len(vocabulary):,} words; {shape.layers} x {shape.hidden} {cell} "
        f"({options.machine.impl}), {model.parameter_count:,} parameters, on {model.device.type} "
        f"with {torch.get_num_threads()} threads"
    )


def finish(
    trainer: Trainer,
    stopped: Stopped,
    texts: dict[Split, Encoded],
    options: TrainOptions,
    began: float,
) -> None:
    """Measure the best weights, write the plot and the result, and say how it went."""
    run, report, model = trainer.run, trainer.report, trainer.model
    run.load_weights(model, trainer.vocabulary)
    report.say("measuring the best weights; Ctrl-C now gives up the result, not the weights")
    measured: tuple[Split, ...] = ("valid", "test")
    scores = {split: score(model, texts[split]) for split in measured}
    run.write("curves.png", curves(trainer.rows, f"{options.model.cell_name}, {run.path.name}"))
    result: dict[str, Any] = {}
    for split, figures in scores.items():
        result[f"{split}_perplexity"] = figures.perplexity
        result[f"{split}_loss"] = figures.loss
        result[f"{split}_bits_per_character"] = figures.bits_per_character
        result[f"{split}_unknown_share"] = texts[split].unknown_share
    result |= {
        "stopped": stopped,
        "epochs": len(trainer.rows),
        "best_epoch": trainer.best_epoch,
        "seconds": time.monotonic() - began,
        "training_seconds": trainer.seconds,
        "tokens_per_second": trainer.tokens_per_second,
        "parameters": model.parameter_count,
        "vocabulary": len(trainer.vocabulary),
        "device": machine.device_name(model.device),
        "threads": torch.get_num_threads(),
        "versions": machine.versions(),
        "options": {
            "data": None if options.text.data is None else str(options.text.data),
            **dataclasses.asdict(options.model),
            **dataclasses.asdict(options.training),
            **dataclasses.asdict(options.machine),
            "compile": options.compile,
        },
    }
    run.write_json("result.json", result)
    report.say()
    best = f"best epoch {trainer.best_epoch} of {len(trainer.rows)}"
    report.say(
        f"{best if trainer.best_epoch else 'weights from within epoch 1'}, "
        f"{result['seconds']:.0f} s in all, {trainer.tokens_per_second:,.0f} tokens/s in training"
    )
    for split in measured:
        name = {"valid": "validation", "test": "test"}[split] + " perplexity"
        unknown = texts[split].unknown_share
        note = f"   ({unknown:.1%} of its words count as {UNK})" if unknown else ""
        report.say(f"{name:21} {scores[split].perplexity:8.2f}{note}")
    report.say(f"curves                {run.file('curves.png')}")
    words = sample(model, (), SAMPLE_WORDS, options.training.seed)
    report.say("\nThe model writes:\n\n" + "".join(trainer.vocabulary.spell(words)))
    report.say(f"\nmore of it: rnnext generate --run {run.path}")
