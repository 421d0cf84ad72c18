"""Typical user code, which `make lint` gives to mypy with the checks of its --strict.

What runs here shows that the types tell the truth; what must not type-check is never called.
"""

# mypy: disallow-any-generics, disallow-any-unimported, disallow-subclassing-any
# mypy: disallow-untyped-calls, disallow-untyped-defs, disallow-incomplete-defs
# mypy: disallow-untyped-decorators, warn-return-any, no-implicit-reexport, strict-equality
# mypy: strict-optional, extra-checks, warn-unused-ignores

from typing import assert_type

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnext

X = torch.zeros(5, 2, 3)
PACKED = pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])


class Peephole(rnnext.Recurrent):
    gates = ("i", "f", "g")
    states = {"h": "hidden_size", "c": "hidden_size"}  # noqa: RUF012
    params = {"p": 0.5, "q": rnnext.Param(nn.init.ones_)}  # noqa: RUF012
    constants = {"leak": 0.1}  # noqa: RUF012
    noise = {"mask": rnnext.Dropout(0.1, per="sequence")}  # noqa: RUF012

    @staticmethod
    def step(
        i: Tensor,
        f: Tensor,
        g: Tensor,
        c: Tensor,
        p: Tensor,
        q: Tensor,
        mask: Tensor,
        leak: float,
    ) -> tuple[Tensor, Tensor]:
        c = torch.sigmoid(f + p * c) * c + torch.sigmoid(i + q * c) * torch.tanh(g)
        return mask * torch.tanh(c), (1 - leak) * c


class Tagger(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.lstm = rnnext.LSTM(3, 4, bidirectional=True)
        self.gru = rnnext.GRU(8, 4, num_layers=2, dropout=0.1)
        self.own = Peephole(4, 4, leak=0.2)
        self.cell = rnnext.LSTMCell(4, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        y, (h_n, _) = self.lstm(x, lengths=lengths)
        y, state = self.gru(y, lengths=torch.tensor(lengths))
        y, states = self.own(y)
        h, _ = self.cell(y[-1], (h_n[0], state[-1]))
        _, states = self.own(y, states)
        return torch.log_softmax(self.head(h), -1)


def test_layers() -> None:
    lstm, gru, rnn = rnnext.LSTM(3, 4), rnnext.GRU(3, 4), rnnext.RNN(3, 4, nonlinearity="relu")
    y, (h, c) = assert_type(lstm(X), tuple[Tensor, tuple[Tensor, Tensor]])
    packed, _ = assert_type(lstm(PACKED, (h, c)), tuple[PackedSequence, tuple[Tensor, Tensor]])
    assert_type(lstm.forward(X, lengths=[5, 2]), tuple[Tensor, tuple[Tensor, Tensor]])
    assert type(packed) is PackedSequence
    sequence = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor]]
    _, _, (c,) = assert_type(lstm(X, return_states=True), sequence)
    _, _, (more,) = assert_type(
        lstm(PACKED, return_states=True),
        tuple[PackedSequence, tuple[Tensor, Tensor], tuple[PackedSequence]],
    )
    assert type(more) is PackedSequence
    for layer in (gru, rnn):
        y, h = assert_type(layer(X), tuple[Tensor, Tensor])
        packed, h = assert_type(layer(PACKED, h), tuple[PackedSequence, Tensor])
        assert type(packed) is PackedSequence
        assert type(y) is type(h) is Tensor
    assert type(c) is Tensor
    assert type(assert_type(rnnext.plan(lstm, 5, 2, lengths=[5, 2]), str)) is str


def test_cells() -> None:
    h, c = assert_type(rnnext.LSTMCell(3, 4)(X[0]), tuple[Tensor, Tensor])
    assert type(c) is Tensor
    h = assert_type(rnnext.GRUCell(3, 4)(X[0], h), Tensor)
    h = assert_type(rnnext.RNNCell(3, 4, nonlinearity="relu")(X[0], h), Tensor)
    assert type(h) is Tensor


def test_written_cells() -> None:
    layer = Peephole(3, 4, leak=0.5)
    y, states = assert_type(layer(X), tuple[Tensor, Tensor | tuple[Tensor, ...]])
    packed, _ = assert_type(
        layer(PACKED, states), tuple[PackedSequence, Tensor | tuple[Tensor, ...]]
    )
    assert type(y) is Tensor
    assert type(states) is tuple
    assert type(packed) is PackedSequence
    assert_type(layer.generated_code(), str | None)
    _, _, sequences = assert_type(
        layer(X, return_states=True),
        tuple[Tensor, Tensor | tuple[Tensor, ...], tuple[Tensor, ...]],
    )
    assert len(sequences) == len(states) - 1


def test_swap_and_the_op() -> None:
    model = Tagger(3)
    assert model(X, [5, 3]).shape == (2, 3)
    assert assert_type(rnnext.unswap(model), Tagger) is model
    assert assert_type(rnnext.swap(model), Tagger) is model
    weights = list(nn.GRU(3, 4).parameters())
    y, h_n = assert_type(rnnext.ops.rnn("GRU", X, [], weights), list[Tensor])
    assert y.shape == (5, 2, 4)
    assert_type(rnnext.reference.rnn("GRU", X, [h_n], weights), list[Tensor])
    assert_type(rnnext.build_info(), dict[str, object])


def mistakes() -> None:
    lstm, gru = rnnext.LSTM(3, 4), rnnext.GRU(3, 4)
    rnnext.LSTM(3, "4")  # type: ignore[arg-type]
    lstm(X, X)  # type: ignore[call-overload]
    gru(X, (X, X))  # type: ignore[call-overload]
    gru(PACKED, lengths=[4, 2])  # type: ignore[call-overload]
    gru(X)[0].data.no_such_method()  # type: ignore[attr-defined]
    rnnext.LSTMCell(3, 4)(X, X)  # type: ignore[arg-type]
    rnnext.swap([lstm])  # type: ignore[type-var]
    rnnext.Dropout("p", per="step", size=[1])  # type: ignore[arg-type]
