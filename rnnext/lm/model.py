"""The network: embedding, dropout, recurrent layers, dropout, decoder.

The shape and the initialisation are those of pytorch/examples' word_language_model, so that its
published perplexities are the ones to expect.
"""

from __future__ import annotations

from importlib import import_module
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .errors import UserError
from .options import Impl, ModelOptions

# What the recurrent layers hand from one step to the next: h [L, N, H], or (h, c) for an LSTM.
State: TypeAlias = Tensor | tuple[Tensor, ...]


class LanguageModel(nn.Module):
    """Predicts each next word of a text from the words before it.

    Args:
        options: sizes and kind of the layers.
        vocabulary: number of words, V.
        impl: whose recurrent layers to use; parameters have the same names, shapes and initial
            values either way.

    Raises:
        UserError: the model does not fit into memory.
    """

    def __init__(self, options: ModelOptions, vocabulary: int, impl: Impl) -> None:
        super().__init__()
        self.options = options
        try:
            self.embedding = nn.Embedding(vocabulary, options.embedding)
            self.rnn = recurrent_layers(options, impl)
            self.decoder = nn.Linear(options.hidden, vocabulary)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"a model of this size cannot be made: {reason}") from error
        self.dropout = nn.Dropout(options.dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if options.tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read some steps.

        Args:
            tokens: int64 `[T, N]`.
            state: what an earlier call returned, to read on from there; None: zeros.

        Returns:
            Logits for the token after each one, `[T, N, V]`, and the state after the last step.
        """
        embedded = self.dropout(self.embedding(tokens))
        output, state = self.rnn(embedded, state)
        return self.decoder(self.dropout(output)), state

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.weight.device

    @property
    def parameter_count(self) -> int:
        """Number of trained values; a shared matrix counts once."""
        return sum(p.numel() for p in self.parameters())


def recurrent_layers(options: ModelOptions, impl: Impl) -> nn.Module:
    """The layers between embedding and decoder: `[T, N, embedding]` to `[T, N, hidden]`."""
    package = import_module("rnnext") if impl == "rnnext" else nn
    kind, _, nonlinearity = options.cell.partition("_")
    layers: nn.Module = getattr(package, kind)(
        options.embedding,
        options.hidden,
        options.layers,
        dropout=options.dropout if options.layers > 1 else 0.0,
        **({"nonlinearity": nonlinearity.lower()} if nonlinearity else {}),
    )
    return layers


def detach(state: State) -> State:
    """The same values, cut off from the computation that led to them."""
    return state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)
