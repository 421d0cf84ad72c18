"""The promise that perplexity is exact."""

from __future__ import annotations

import math

import pytest
import torch

from rnnext.lm.model import LanguageModel
from rnnext.lm.options import ModelOptions
from rnnext.lm.perplexity import perplexity, score, total_loss
from rnnext.lm.vocabulary import EOS_ID, Encoded

V = 9
TOKENS = torch.randint(V, (53,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    options = ModelOptions(embedding=5, hidden=6, layers=2, dropout=0.3)
    model = LanguageModel(options, V, "torch").double()
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data.mul_(10)
    return model


def by_hand(model: LanguageModel, context: int, tokens: list[int]) -> float:
    """-ln p of some tokens, one call for each, after the token `context` and a zero state."""
    model.eval()
    total, state = 0.0, None
    for token in tokens:
        logits, state = model(torch.tensor([[context]]), state)
        total -= logits[0, 0].log_softmax(0)[token].item()
        context = token
    return total


def test_one_stream_is_every_token_from_all_before_it(model: LanguageModel) -> None:
    expected = by_hand(model, EOS_ID, TOKENS.tolist())
    for length in (1, 2, 7, 52, 53, 54, None):
        assert total_loss(model, TOKENS, 1, length) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 53])
def test_n_streams_lose_context_but_no_token(model: LanguageModel, n: int) -> None:
    quotient, remainder = divmod(53, n)
    expected, start, seen = 0.0, 0, 0
    for stream in range(n):
        part = TOKENS[start : start + quotient + (stream < remainder)].tolist()
        context = int(TOKENS[start - 1]) if start else EOS_ID
        expected += by_hand(model, context, part)
        start, seen = start + len(part), seen + len(part)
    assert seen == 53
    for length in (1, 4, None):
        assert total_loss(model, TOKENS, n, length) == pytest.approx(expected, rel=1e-12)


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_words(
    model: LanguageModel,
) -> None:
    clueless = LanguageModel(ModelOptions(embedding=2, hidden=2), V, "torch")
    for parameter in clueless.parameters():
        parameter.data.zero_()
    text = Encoded(TOKENS, words=40, unknown=0, characters=200)
    for n in (1, 4):
        result = score(clueless, text, n)
        assert result.tokens == 53
        assert result.perplexity == pytest.approx(V)
        assert result.bits_per_character == pytest.approx(math.log2(V) * 53 / 200)


def test_losses_beyond_a_float() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
