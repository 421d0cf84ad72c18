"""Let a trained model write: sampling, and the command around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from . import machine
from .model import LanguageModel
from .options import GenerateOptions
from .run_folder import RunFolder
from .vocabulary import EOS_ID, UNK


def distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """From what a model says about the next word to the probabilities to draw it with.

    The temperature comes first, then the k likeliest words stay, then, of those, the likeliest that
    together have at least the probability `top_p`. Of equally likely words the first stays.

    Args:
        logits: `[V]`.
        temperature: divides the logits; 0 leaves only the likeliest word.
        top_k: how many words stay; 0: all.
        top_p: from just above 0 to 1.

    Returns:
        float64 `[V]`, sums to 1.
    """
    logits = logits.double() - logits.max()
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ranked, words = (logits / temperature).softmax(0).sort(descending=True, stable=True)
    if top_k:
        ranked[top_k:] = 0
        ranked /= ranked.sum()
    if top_p < 1:
        before = ranked.cumsum(0) - ranked
        ranked[before >= top_p] = 0
    return torch.zeros_like(ranked).scatter(0, words, ranked / ranked.sum())


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt: Sequence[int],
    words: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """Continue a text, one word after the other.

    Draws from a generator of its own, so that training goes on as if nothing had been sampled.

    Args:
        model: the model, in evaluation mode.
        prompt: word numbers to read first, after the `<eos>` that every text begins with.
        words: how many to yield; an `<eos>` counts as one.
        seed: the same seed gives the same words.
        temperature, top_k, top_p: see `distribution`.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([[EOS_ID, *prompt]], device=model.device).T
    state = None
    for _ in range(words):
        # Single words are not worth compiling for, where the model is compiled.
        logits, state = model.forward(tokens, state)
        probabilities = distribution(logits[-1, 0].cpu(), temperature, top_k, top_p)
        word = int(torch.multinomial(probabilities, 1, generator=generator))
        yield word
        tokens = torch.tensor([[word]], device=model.device)


def generate(options: GenerateOptions) -> int:
    """Run `rnnext generate`: print the prompt and what follows it; return the exit status.

    Raises:
        UserError: an option makes no sense, or the run folder cannot be used.
    """
    options.check()
    device = machine.use(options.machine)
    model, vocabulary = RunFolder(options.run).load_model(device, options.machine.impl)
    unknown = [word for word in options.prompt.split() if word not in vocabulary.ids]
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        print(f"not in the vocabulary, read as {UNK}: {names}", file=sys.stderr)
    prompt = vocabulary.encode(options.prompt.split("\n")).tokens.tolist()
    prompt.pop()  # the prompt's last line goes on
    continuation = sample(
        model,
        prompt,
        options.words,
        options.seed,
        options.temperature,
        options.top_k,
        options.top_p,
    )
    for piece in vocabulary.spell(chain(prompt, continuation)):
        print(piece, end="", flush=True)
    print()
    return 0
