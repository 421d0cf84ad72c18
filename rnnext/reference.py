"""The recurrent cells in plain PyTorch: the tests' oracle, and the path where there are no kernels.

Axis letters: T time, N batch, C input size, H hidden size, G gates, L layers, D directions.

A cell is one function, `step(x, r, states) -> states`, and one line in `CELLS`. It sees the two
parts of its gates apart, because a GRU needs them so:

    x = W_ih x_t + b_ih          [n, G*H]   from the input
    r = W_hh h_(t-1) + b_hh      [n, G*H]   from the previous hidden state, which is states[0]

Everything else (layers, directions, packed input, dropout between layers) is `rnn`, once for all
cells. All of it can be differentiated any number of times, on any device, in any floating dtype;
autocast does not reach into it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = [
    "CELLS",
    "Cell",
    "apply_dropout",
    "dropout_bits",
    "gru",
    "lstm",
    "rnn",
    "rnn_relu",
    "rnn_tanh",
]

Step = Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, ...]]


def lstm(x: Tensor, r: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One step of an LSTM: gates in the order i, f, g, o; states h, c, each [n, H].

        i  = sigmoid(x_i + r_i)              c' = f * c + i * g
        f  = sigmoid(x_f + r_f)              h' = o * tanh(c')
        g  =    tanh(x_g + r_g)
        o  = sigmoid(x_o + r_o)

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000.
    """
    i, f, g, o = (x + r).chunk(4, -1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Tensor, r: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One step of a GRU: gates in the order r, z, n; one state h [n, H].

        reset = sigmoid(x_r + r_r)
        z     = sigmoid(x_z + r_z)
        n     =    tanh(x_n + reset * r_n)   where r_n = W_hn h + b_hn
        h'    = (1 - z) * n + z * h

    Cho et al. 2014, with the reset gate applied after the product, as torch.nn and cuDNN do.
    """
    x_r, x_z, x_n = x.chunk(3, -1)
    r_r, r_z, r_n = r.chunk(3, -1)
    reset = (x_r + r_r).sigmoid()
    z = (x_z + r_z).sigmoid()
    n = (x_n + reset * r_n).tanh()
    return ((1 - z) * n + z * states[0],)


def rnn_tanh(x: Tensor, r: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One step of Elman's network (1990): h' = tanh(x + r), all [n, H]."""
    return ((x + r).tanh(),)


def rnn_relu(x: Tensor, r: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One step of Elman's network with a rectifier: h' = max(0, x + r), all [n, H]."""
    return ((x + r).relu(),)


class Cell(NamedTuple):
    """What a cell declares: gates per unit, state tensors (the first is h), and its step."""

    gates: int
    states: int
    step: Step


CELLS: dict[str, Cell] = {
    "LSTM": Cell(gates=4, states=2, step=lstm),
    "GRU": Cell(gates=3, states=1, step=gru),
    "RNN_TANH": Cell(gates=1, states=1, step=rnn_tanh),
    "RNN_RELU": Cell(gates=1, states=1, step=rnn_relu),
}


def rnn(
    cell: str,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    seed: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> list[Tensor]:
    """Run a stack of recurrent layers over a sequence.

    Args:
        cell: a name in `CELLS`.
        x: input [T, N, C]; or, with `batch_sizes`, the packed rows [sum(batch_sizes), C].
        h0: no tensor (zeros) or one [L*D, N, H] for each state of the cell (LSTM: h, c).
        weights: for each layer, for each direction, W_ih [G*H, C or D*H], W_hh [G*H, H] and, if
            there are biases, b_ih [G*H], b_hh [G*H]: torch.nn's order.
        batch_sizes: rows at each step, int64 [T] on the CPU, not increasing (a PackedSequence's).
        seed: int64 tensor of one element. Dropout is applied only where it is given.
        num_layers: L.
        bidirectional: whether D is 2.
        dropout: probability of zeroing an element of a layer's output, for all but the last layer.

    Returns:
        [y, h_n] or [y, h_n, c_n]: y [T, N, D*H] (or packed rows [sum(batch_sizes), D*H]) of the
        last layer; states [L*D, N, H] after each row's own last step.

    Raises:
        ValueError: unknown cell, or a number of weights or states that does not fit it.
        RuntimeError: a sequence of no steps.

    Example:
        >>> x, w_ih, w_hh = torch.randn(5, 2, 3), torch.randn(16, 3), torch.randn(16, 4)
        >>> y, h_n, c_n = rnn("LSTM", x, [], [w_ih, w_hh])
        >>> y.shape, h_n.shape, c_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), torch.Size([1, 2, 4]))
    """
    directions = 2 if bidirectional else 1
    runs = num_layers * directions
    per_run = _check(cell, x, h0, weights, batch_sizes, runs)
    # Padded input is packed input with N rows at every step.
    sizes = [x.size(1)] * x.size(0) if batch_sizes is None else batch_sizes.tolist()
    rows = x.flatten(0, 1) if batch_sizes is None else x
    finals: list[tuple[Tensor, ...]] = []
    with _without_autocast(x.device.type):
        for layer in range(num_layers):
            if layer > 0 and dropout > 0 and seed is not None:
                rows = apply_dropout(rows, dropout, seed, layer - 1)
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                w = weights[k * per_run : (k + 1) * per_run]
                if h0:
                    states = tuple(s[k] for s in h0)
                else:
                    zeros = rows.new_zeros(sizes[0], w[1].size(1))
                    states = (zeros,) * CELLS[cell].states
                y, states = _scan(CELLS[cell].step, rows, sizes, states, w, reverse=direction == 1)
                outputs.append(y)
                finals.append(states)
            rows = torch.cat(outputs, -1) if bidirectional else outputs[0]
    y = rows.view(*x.shape[:2], rows.size(1)) if batch_sizes is None else rows
    return [y, *(torch.stack(slot) for slot in zip(*finals, strict=True))]


def _scan(
    step: Step,
    rows: Tensor,
    sizes: list[int],
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: rows [sum(sizes), C] -> y [sum(sizes), H], final states [N, H].

    The states carry all N rows, of which step t updates the first sizes[t]. Forward in time, the
    others have ended and hold their final state; in reverse, they have not begun and hold their
    initial one.
    """
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] if len(weights) > 2 else (None, None)
    steps = list(zip(torch.split(linear(rows, w_ih, b_ih), sizes), sizes, strict=True))
    outputs = []
    for x, n in reversed(steps) if reverse else steps:
        now = tuple(s[:n] for s in states)
        new = step(x, linear(now[0], w_hh, b_hh), now)
        outputs.append(new[0])
        if n < sizes[0]:
            new = tuple(torch.cat((a, s[n:])) for a, s in zip(new, states, strict=True))
        states = new
    return torch.cat(outputs[::-1] if reverse else outputs), states


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _check(
    cell: str,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    runs: int,
) -> int:
    """Refuse what the loop would misread; return how many weights one layer's direction has."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}: expected one of {', '.join(CELLS)}")
    if len(weights) not in (2 * runs, 4 * runs):
        raise ValueError(
            f"got {len(weights)} weights for {runs} layers times directions: expected {2 * runs} "
            f"(W_ih, W_hh) or {4 * runs} (W_ih, W_hh, b_ih, b_hh)"
        )
    if len(h0) not in (0, CELLS[cell].states):
        raise ValueError(
            f"got {len(h0)} initial states: {cell} expects none or {CELLS[cell].states}"
        )
    if (x if batch_sizes is None else batch_sizes).size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return len(weights) // runs


_WORD = 0xFFFFFFFF


def _philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): counter of four words, key of two -> four.

    Words of 32 bits are int64 tensors that broadcast. A product of two may wrap int64; its 64 bits
    are right all the same, and the masks remove the sign that the shift brings in.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = ((a >> 32) & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def dropout_bits(
    seed: Tensor, layer: int, count: int, device: torch.device | None = None
) -> Tensor:
    """The random words of a layer's dropout mask: int64 [count], each in 0 .. 2**32 - 1.

    Word number `index` depends on (seed, layer, index) alone, so that kernels and reference draw
    the same mask in any order and with any number of threads:

        philox(counter = (index//4 mod 2**32, index//4 >> 32, layer, 0),
               key = (seed mod 2**32, seed >> 32))[index % 4]

    Args:
        seed: int64 tensor of one element.
        layer: 0 for the output of the first layer.
        count: number of words.
        device: where to compute; default that of the seed.

    Example:
        >>> [hex(word) for word in dropout_bits(torch.tensor(0), 0, 4).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    seed = seed.reshape(()).to(device=device)
    block = torch.arange((count + 3) // 4, device=seed.device)
    zero = torch.zeros_like(block)
    counter = (block & _WORD, block >> 32, zero + layer, zero)
    words = _philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return torch.stack(words, -1).flatten()[:count]


def apply_dropout(x: Tensor, p: float, seed: Tensor, layer: int) -> Tensor:
    """Zero elements of x [rows, width] with probability p and scale the others by 1 / (1 - p).

    Srivastava et al. 2014. The element at (row, column) is kept iff its word in `dropout_bits`,
    number row * width + column, is at least floor(p * 2**32); p = 1 gives zeros.

    Example:
        >>> apply_dropout(torch.ones(2, 3), 0.5, torch.tensor(5), 0)
        tensor([[2., 0., 2.],
                [2., 0., 0.]])
    """
    keep = dropout_bits(seed, layer, x.numel(), x.device) >= int(p * 2**32)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(keep.view(x.shape), x * scale, 0.0)
