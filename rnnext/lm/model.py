"""The network: embedding, dropout, recurrent layers, dropout, decoder.

The shape and the initialisation are those of pytorch/examples' word_language_model, so that its
published perplexities are the ones to expect.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from rnnext import Recurrent

from .cells import Cell, load_cell
from .errors import UserError, require
from .options import Impl, ModelOptions

# What the recurrent layers hand from one step to the next: h [L, N, H]; of a cell with several
# states a tuple, as (h, c) for an LSTM, each with its own width.
State: TypeAlias = Tensor | tuple[Tensor, ...]


class LanguageModel(nn.Module):
    """Predicts each next word of a text from the words before it.

    Args:
        options: sizes and kind of the layers.
        vocabulary: number of words, V.
        impl: whose recurrent layers to use; parameters have the same names, shapes and initial
            values either way.
        cell: what the options name, where that is loaded already.

    Raises:
        UserError: the model does not fit into memory; the cell cannot be loaded, or refuses its
            sizes; tied weights of two shapes.
    """

    def __init__(
        self, options: ModelOptions, vocabulary: int, impl: Impl, cell: Cell | None = None
    ) -> None:
        super().__init__()
        self.options = options
        cell = cell or load_cell(options, impl)
        try:
            self.embedding = nn.Embedding(vocabulary, options.embedding)
            self.rnn = cell.layers(
                options.embedding,
                options.hidden,
                options.layers,
                dropout=options.dropout if options.layers > 1 else 0.0,
            )
            width = output_width(self.rnn)
            self.decoder = nn.Linear(width, vocabulary)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"a model of this size cannot be made: {reason}") from error
        self.dropout = nn.Dropout(options.dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if options.tied:
            require(
                options.embedding == width,
                "--tied shares one matrix between embedding and decoder: --embedding "
                f"({options.embedding}) and the width of the layers' output ({width}) must be "
                "equal",
            )
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


def output_width(layers: nn.Module) -> int:
    """The width of what the recurrent layers hand to the decoder: that of the first state."""
    if isinstance(layers, Recurrent):
        cell = layers.declaration
        sizes = [getattr(layers, name) for name in cell.sizes]
        return cell.state_widths(cell.size_values(layers.hidden_size, sizes))[0]
    if isinstance(layers, nn.RNNBase) and layers.proj_size:
        return layers.proj_size
    width = layers.hidden_size
    assert isinstance(width, int)
    return width


def detach(state: State) -> State:
    """The same values, cut off from the computation that led to them."""
    return state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)
