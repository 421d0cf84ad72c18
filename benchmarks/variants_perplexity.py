"""Train the language model once with each published variant, and with the plain layers.

    python benchmarks/variants_perplexity.py --data penn-treebank \
        --out benchmarks/results/variants_perplexity.json

All have one recipe: 2 layers of 200, dropout 0.2, batch 20, BPTT 35 as in pytorch/examples'
word_language_model, but Adam in place of SGD with a learning rate of 20, at which only some cells
train, and a decoder whose bias begins with the logarithms of the words' frequencies. With a bias of
0, Adam learns these by the quickest way, from states that are the same everywhere: within 50 steps
gates are saturated and c, which is carried through the text, is in the hundreds. Some cells take
long to come back from there, and some never do. The variants are those of variants.py, with the
same options. It is one run of each, with one seed: differences of a percent or two mean nothing,
and a recipe of its own would suit many better.

A variant is written to the file when it is done, and those in the file are not trained again, so
that a killed run goes on where it stopped. A variant whose loss exceeds twice that of guessing all
words alike, which is what training begins with, is stopped and reported as diverged.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from machine import about
from torch import Tensor
from variants import VARIANTS, Variant

from rnnext.lm.batches import windows
from rnnext.lm.data import load_corpus
from rnnext.lm.model import LanguageModel, State
from rnnext.lm.options import ModelOptions
from rnnext.lm.perplexity import score
from rnnext.lm.trainer import VALIDATION_STREAMS, train_step
from rnnext.lm.vocabulary import Encoded, Vocabulary

BATCH, BPTT, CLIP = 20, 35, 0.25
PLAIN = ("LSTM", "GRU", "RNN_TANH")
UNTIMED = (
    Variant("VariationalGRU", "VariationalGRU", "GRU", {"variational_dropout": 0.25}),
    Variant("IRNN, recurrent_scale=0.01", "IRNN", "RNN", {"recurrent_scale": 0.01}),
    Variant("PeepholeLSTM, clipped", "PeepholeLSTM", "LSTM", {"cell_clip": 3.0}),
    Variant("RNN, zoneout", "RNN", "RNN", {"zoneout_h": 0.1}),
)


def models() -> dict[str, ModelOptions]:
    """The model of each row: the plain layers, what variants.py times, and a few more.

    Without options a variant is the plain layer, number for number.
    """
    found = {f"plain {name}": ModelOptions(cell=name) for name in PLAIN}
    for variant in (*VARIANTS, *UNTIMED):
        if variant.name.endswith("no option") or variant.loop:
            continue
        options = dict(variant.options)
        if variant.weight_dropout:
            options["weight_dropout"] = variant.weight_dropout
        given = tuple(f"{name}={value}" for name, value in options.items())
        found[variant.name] = ModelOptions(cell=f"cells.{variant.cell}", cell_options=given)
    return found


def trained(
    name: str, options: ModelOptions, train: Encoded, valid: Encoded, given: argparse.Namespace
) -> dict[str, Any]:
    """The row of a model: its validation perplexity after each epoch."""
    torch.manual_seed(given.seed)
    words = int(train.tokens.max()) + 1
    model = LanguageModel(options, words, "rnnext").train()
    begin_with_frequencies(model.decoder.bias, train)
    optimizer = torch.optim.Adam(model.parameters(), lr=given.lr, fused=True)
    perplexities: list[float] = []
    start = time.monotonic()
    for _ in range(given.epochs):
        if not one_epoch(model, optimizer, train, limit=2 * math.log(words)):
            break
        perplexities.append(score(model, valid, VALIDATION_STREAMS).perplexity)
    return {
        "variant": name,
        "cell": options.cell,
        "options": list(options.cell_options),
        "parameters": model.parameter_count,
        "valid_perplexity": perplexities,
        "diverged": len(perplexities) < given.epochs,
        "seconds": time.monotonic() - start,
    }


@torch.no_grad()
def begin_with_frequencies(bias: Tensor, train: Encoded) -> None:
    """Make the decoder's bias the logarithms of how often words occur, each one time more."""
    counts = torch.bincount(train.tokens, minlength=len(bias)) + 1.0
    bias.copy_(torch.log(counts / counts.sum()))


def one_epoch(
    model: LanguageModel, optimizer: torch.optim.Optimizer, train: Encoded, limit: float
) -> bool:
    """Train on the whole text; False as soon as the loss is not under the limit."""
    state: State | None = None
    model.train()
    for window in windows(train.tokens, BATCH, BPTT, model.device):
        loss, state = train_step(model, optimizer, CLIP, window, state)
        if not float(loss) < limit:  # which no NaN is
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.txt, valid.txt")
    parser.add_argument("--out", type=Path, required=True, help="the result file, taken up again")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = {
        "optimizer": "Adam",
        "batch_size": BATCH,
        "bptt": BPTT,
        "clip": CLIP,
        "dropout": 0.2,
        "decoder_bias": "log frequencies",
        **{name: getattr(options, name) for name in ("lr", "epochs", "seed")},
    }
    result: dict[str, Any] = {"about": {**about(), "recipe": recipe}, "rows": []}
    if options.out.exists():
        result = json.loads(options.out.read_text())
        if result["about"]["recipe"] != recipe:
            parser.error(f"{options.out} has rows of another recipe, {result['about']['recipe']}")
    done = {row["variant"] for row in result["rows"]}
    corpus = load_corpus(options.data)
    vocabulary = Vocabulary.build(corpus.train)
    train, valid = vocabulary.encode(corpus.train), vocabulary.encode(corpus.valid)
    for name, model in models().items():
        if name in done or (options.only and name not in options.only):
            continue
        row = trained(name, model, train, valid, options)
        result["rows"].append(row)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        ends = "diverged" if row["diverged"] else f"{row['valid_perplexity'][-1]:.1f}"
        print(f"{name:24} validation perplexity {ends}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
