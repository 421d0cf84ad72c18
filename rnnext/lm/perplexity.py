"""The exact loss of a text under a model.

The definition is one stream: every token is predicted once, each from all those before it, the
first from `<eos>` and a zero state. With N streams the same tokens are predicted, but the first
ones of each stream without the context before the seam, which makes the loss a little larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import IGNORED, windows
from .model import LanguageModel, State
from .vocabulary import Encoded

# Logits computed at once: 16 MiB in float32. With the state carried over, windows of any length
# give the same loss, so the length is free to suit the memory.
LOGITS = 2**22


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        loss: mean over the tokens (words and `<eos>`) of -ln p(token), in nats.
        tokens: number of tokens, each predicted once.
        bits_per_character: -log2 p(whole text) / characters, where the text has one space between
            words and one newline after each line. An unknown word counts with all its characters,
            though the model has only said `<unk>`: compare texts with unknown words with care.
    """

    loss: float
    tokens: int
    bits_per_character: float

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that exceeds a float."""
    return math.exp(loss) if loss < 709 else loss * math.inf


def score(model: LanguageModel, text: Encoded, n: int = 1) -> Score:
    """Measure a model on a text read as `n` streams; leaves the model in evaluation mode."""
    total = total_loss(model, text.tokens, n)
    return Score(
        loss=total / len(text.tokens),
        tokens=len(text.tokens),
        bits_per_character=total / math.log(2) / text.characters,
    )


@torch.no_grad()
def total_loss(
    model: LanguageModel, tokens: Tensor, n: int = 1, length: int | None = None
) -> float:
    """The sum of -ln p(token) over a text, added up in float64.

    Args:
        model: the model; it is left in evaluation mode.
        tokens: int64 `[length of the text]`.
        n: number of streams the text is cut into.
        length: steps computed at once; by default as many as suit the memory.
    """
    model.eval()
    if length is None:
        length = max(1, LOGITS // (n * model.decoder.out_features))
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    state: State | None = None
    for window in windows(tokens, n, length, model.device):
        logits, state = model(window.inputs, state)
        losses = F.cross_entropy(
            logits.flatten(0, 1), window.targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        total += losses.sum(dtype=torch.float64)
    return float(total)
