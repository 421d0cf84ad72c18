"""The network: shapes, initialisation, tied weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnnext.lm.errors import UserError
from rnnext.lm.model import LanguageModel, detach
from rnnext.lm.options import BUILT_IN, ModelOptions

V, T, N = 11, 5, 3
OPTIONS = ModelOptions(embedding=6, hidden=8, layers=2, dropout=0.5)
TOKENS = torch.arange(T * N).reshape(T, N) % V


@pytest.mark.parametrize("cell", BUILT_IN)
def test_shapes(cell: str) -> None:
    model = LanguageModel(replace(OPTIONS, cell=cell), V, "torch")
    logits, state = model(TOKENS)
    assert logits.shape == (T, N, V)
    tensors = state if isinstance(state, tuple) else (state,)
    assert len(tensors) == (2 if cell == "LSTM" else 1)
    assert all(s.shape == (2, N, 8) and s.requires_grad for s in tensors)
    detached = detach(state)
    assert isinstance(detached, tuple) == isinstance(state, tuple)
    assert not any(s.requires_grad for s in detached)


def test_the_state_makes_two_calls_one() -> None:
    model = LanguageModel(OPTIONS, V, "torch").eval()
    whole, _ = model(TOKENS)
    first, state = model(TOKENS[:2])
    second, _ = model(TOKENS[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_initialisation_is_the_examples() -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(OPTIONS, hidden=100, embedding=50), 200, "torch")
    for weight in (model.embedding.weight, model.decoder.weight):
        assert 0.09 < weight.max() <= 0.1
        assert -0.1 <= weight.min() < -0.09
    assert not model.decoder.bias.any()
    bound = 100**-0.5  # torch.nn's own for recurrent layers
    for parameter in model.rnn.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in LanguageModel(OPTIONS, V, "torch").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_tied_weights_are_one_matrix() -> None:
    sizes = replace(OPTIONS, embedding=8)
    free = LanguageModel(sizes, V, "torch")
    tied = LanguageModel(replace(sizes, tied=True), V, "torch")
    assert tied.decoder.weight is tied.embedding.weight
    assert free.parameter_count - tied.parameter_count == V * 8
    with pytest.raises(UserError, match="must be equal"):
        LanguageModel(replace(OPTIONS, tied=True), V, "torch")


def test_dropout_is_for_training_only() -> None:
    model = LanguageModel(OPTIONS, V, "torch")
    assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])
    model.eval()
    assert torch.equal(model(TOKENS)[0], model(TOKENS)[0])


def test_a_model_too_large_to_be_made() -> None:
    with pytest.raises(UserError, match="of this size"):
        LanguageModel(replace(OPTIONS, hidden=10**9), V, "torch")
