"""The LSTM with recurrent batch norm: in plain PyTorch, since its statistics mix sequences.

A stage of the engine treats each row by itself, so that threads need not meet; a mean over the rows
of every step would make them meet at each of three norms a step. What a step can be spared is: the
input's product is made once for all steps, and its norm once for all steps that have as many rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, dropout, linear
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnext.packing import Lengths, as_tensor

__all__ = ["BatchNormLSTM"]

Pair = tuple[Tensor, Tensor]


class BatchNormLSTM(nn.Module):
    """An LSTM with batch norm of its input's part, its recurrent part and its cell state.

        [i; f; g; o] = BN(W_ih x; gain_x) + BN(W_hh h; gain_h) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(BN(c'; gain_c) + shift_c)

    BN subtracts the mean over the sequences of a batch, of each unit and each step apart, divides
    by the deviation, and multiplies by the gain, 0.1 at first: with 1 the gradients vanish. In
    training each step takes the statistics of its own sequences, those that are alive, and keeps a
    running average of them for eval mode: one for each of the first max_length steps, the last of
    which stands for all later ones. A step with a single sequence has none, and takes the average.

    Plain PyTorch, step by step: what other cells here cost does not hold for it.

    Cooijmans et al. 2016 (arXiv:1603.09025).

    Args:
        input_size: C, features of the input.
        hidden_size: H, features of each state.
        num_layers: L; each layer reads the outputs of the one before.
        batch_first: input and output are [N, T, ...] instead of [T, N, ...]; states are not.
        dropout: probability of zeroing an element of a layer's output (training only, not after
            the last layer).
        bidirectional: D = 2. The reverse direction counts steps from each sequence's end.
        max_length: steps with statistics of their own.
        momentum: weight of a batch in the running averages.
        eps: added to the variance.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l{k} [4*H, C], weight_hh_l{k} [4*H, H]: from U(-1/sqrt(H), 1/sqrt(H)); bias_l{k},
        gain_x_l{k}, gain_h_l{k} [4*H], gain_c_l{k}, shift_c_l{k} [H]; gates in the order i, f, g,
        o. Buffers mean_x_l{k}, var_x_l{k} [max_length, 4*H] and so on of h and c. The reverse
        direction's with `_reverse` appended.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range.

    Example:
        >>> lstm = BatchNormLSTM(10, 20, max_length=50)
        >>> y, (h_n, c_n) = lstm(torch.randn(35, 8, 10))
    """

    constants: ClassVar[dict[str, Any]] = {"max_length": 100, "momentum": 0.1, "eps": 1e-5}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        max_length: int = 100,
        momentum: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in {**sizes, "max_length": max_length}.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
            if value <= 0:
                raise ValueError(f"{name} must be greater than zero")
        for name, number in {"dropout": dropout, "momentum": momentum}.items():
            if not 0 <= number <= 1:
                raise ValueError(f"{name} should be a number in range [0, 1], got: {number}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.max_length, self.momentum, self.eps = max_length, momentum, eps
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        h = hidden_size
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else h * (2 if bidirectional else 1)
            shapes = {"weight_ih": (4 * h, inputs), "weight_hh": (4 * h, h), "bias": (4 * h,)}
            shapes |= {"gain_x": (4 * h,), "gain_h": (4 * h,), "gain_c": (h,), "shift_c": (h,)}
            for suffix in self._suffixes(layer):
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, **options))
                    self.register_parameter(f"{name}{suffix}", parameter)
                for name, width in (("x", 4 * h), ("h", 4 * h), ("c", h)):
                    for statistic in ("mean", "var"):
                        buffer = torch.empty(max_length, width, **options)
                        self.register_buffer(f"{statistic}_{name}{suffix}", buffer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the parameters new initial values, and forget all statistics."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            if name.startswith("weight"):
                nn.init.uniform_(value, -bound, bound)
            else:
                start = 0.1 if name.startswith("gain") else float(name.startswith("var"))
                nn.init.constant_(value, start)

    def extra_repr(self) -> str:
        """The arguments, those with default values left out."""
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        given = {k: getattr(self, k) for k in (*defaults, *self.constants)}
        known = {**defaults, **self.constants}
        shown = [f"{name}={value!r}" for name, value in given.items() if value != known[name]]
        return ", ".join((f"{self.input_size}, {self.hidden_size}", *shown))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Pair | None = None,
        *,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor | PackedSequence, Pair]:
        """Run the stack over a batch of sequences.

        Args:
            input: [T, N, C] ([N, T, C] if batch_first), or a PackedSequence; in training of two
                sequences at least.
            hx: initial states (h_0, c_0), each [L*D, N, H]; default zeros.
            lengths: with padded input, the length of each sequence: N integers in 1..T, in any
                order.

        Returns:
            output, (h_n, c_n), as `rnnext.LSTM`.

        Raises:
            ValueError: input of other dimensions or sizes; a single sequence in training; lengths
                with packed input, or out of range.
            RuntimeError: states of another shape.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths= was given with a PackedSequence, which has its own")
            packed, steps = input, 0
        else:
            if input.dim() != 3:
                raise ValueError(f"BatchNormLSTM: Expected input to be 3D, got {input.dim()}D")
            n, steps = input.shape[:2] if self.batch_first else (input.size(1), input.size(0))
            ends = torch.full((n,), steps) if lengths is None else as_tensor(lengths).cpu()
            if len(ends) != n or int(ends.max()) > steps:
                raise ValueError(f"lengths must be {n} integers in 1..{steps}, got {lengths}")
            packed = pack_padded_sequence(input, ends, self.batch_first, enforce_sorted=False)
        y, states = self._run(packed, hx)
        if steps == 0:
            return y, states
        return pad_packed_sequence(y, self.batch_first, total_length=steps)[0], states

    def _run(self, packed: PackedSequence, hx: Pair | None) -> tuple[PackedSequence, Pair]:
        rows, batch_sizes, order, inverse = packed
        if rows.dim() != 2 or rows.size(1) != self.input_size:
            raise ValueError(f"expected {self.input_size} features, got {list(rows.shape)}")
        alive = batch_sizes.tolist()
        if self.training and alive[0] == 1:
            raise ValueError(
                "BatchNormLSTM needs two sequences at least in training: one has no variance"
            )
        runs = self.num_layers * (2 if self.bidirectional else 1)
        expected = (runs, alive[0], self.hidden_size)
        hx = hx or (rows.new_zeros(expected), rows.new_zeros(expected))
        for name, state in zip(("h_0", "c_0"), hx, strict=True):
            if state.shape != expected:
                raise RuntimeError(f"Expected {name} size {expected}, got {list(state.shape)}")
        if order is not None:
            hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        finals: list[Pair] = []
        for layer in range(self.num_layers):
            if layer > 0:
                rows = dropout(rows, self.dropout, self.training)
            outputs = []
            for suffix in self._suffixes(layer):
                back = _reversed_rows(alive, rows.device) if "reverse" in suffix else None
                x = rows if back is None else rows[back]
                h, c = (state[len(finals)] for state in hx)
                y, final = self._scan(x, alive, h, c, suffix)
                outputs.append(y if back is None else y[back])
                finals.append(final)
            rows = torch.cat(outputs, 1)
        h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
        if inverse is not None:
            h_n, c_n = h_n.index_select(1, inverse), c_n.index_select(1, inverse)
        return PackedSequence(rows, batch_sizes, order, inverse), (h_n, c_n)

    def _scan(
        self, rows: Tensor, alive: list[int], h: Tensor, c: Tensor, suffix: str
    ) -> tuple[Tensor, Pair]:
        """One direction of a layer, over packed rows; the states are those of all sequences."""
        get = {name: getattr(self, f"{name}{suffix}") for name in _NAMES}
        outputs = []
        for t, x in enumerate(self._inputs(rows, alive, get)):
            n = len(x)
            h_part = self._norm(linear(h[:n], get["weight_hh"]), t, get, "h", get["gain_h"])
            i, f, g, o = (x + h_part + get["bias"]).chunk(4, 1)
            new_c = f.sigmoid() * c[:n] + i.sigmoid() * g.tanh()
            normed = self._norm(new_c, t, get, "c", get["gain_c"], get["shift_c"])
            new_h = o.sigmoid() * normed.tanh()
            outputs.append(new_h)
            h, c = torch.cat([new_h, h[n:]]), torch.cat([new_c, c[n:]])
        return torch.cat(outputs), (h, c)

    def _inputs(self, rows: Tensor, alive: list[int], get: dict[str, Tensor]) -> Iterator[Tensor]:
        """The normed input's part of each step; one norm for all steps that have as many rows."""
        parts = linear(rows, get["weight_ih"])
        first = 0
        for n, group in groupby(range(len(alive)), key=alive.__getitem__):
            steps = list(group)
            end = first + n * len(steps)
            values = parts[first:end].view(len(steps), n, -1).transpose(0, 1).flatten(1)
            places = [min(t, self.max_length - 1) for t in steps]
            mean, var = get["mean_x"][places], get["var_x"][places]  # copies
            gain = get["gain_x"].repeat(len(steps))
            normed = batch_norm(
                values,
                mean.view(-1),
                var.view(-1),
                gain,
                None,
                self.training and n > 1,
                self.momentum,
                self.eps,
            )
            if self.training and n > 1:
                self._keep(get["mean_x"], places, mean)
                self._keep(get["var_x"], places, var)
            yield from normed.unflatten(1, (len(steps), -1)).unbind(1)
            first = end

    def _keep(self, running: Tensor, places: list[int], updated: Tensor) -> None:
        """Write averages back; of steps that share the last one, the mean of theirs."""
        own = sum(place < self.max_length - 1 for place in places)
        running[places[:own]] = updated[:own]
        if own < len(places):
            running[-1] = updated[own:].mean(0)

    def _norm(
        self,
        values: Tensor,
        t: int,
        get: dict[str, Tensor],
        name: str,
        gain: Tensor,
        shift: Tensor | None = None,
    ) -> Tensor:
        place = min(t, self.max_length - 1)
        mean, var = get[f"mean_{name}"][place], get[f"var_{name}"][place]
        own = self.training and len(values) > 1
        return batch_norm(values, mean, var, gain, shift, own, self.momentum, self.eps)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]

    if TYPE_CHECKING:
        __call__ = forward


_NAMES = (
    *("weight_ih", "weight_hh", "bias", "gain_x", "gain_h", "gain_c", "shift_c"),
    *(f"{statistic}_{name}" for statistic in ("mean", "var") for name in ("x", "h", "c")),
)


def _reversed_rows(alive: list[int], device: torch.device) -> Tensor:
    """For each packed row, the place of the one as far from its sequence's end; its own inverse."""
    sizes = torch.tensor(alive)
    first = sizes.cumsum(0) - sizes
    lengths = (sizes.unsqueeze(1) > torch.arange(alive[0])).sum(0)
    places = [first[lengths[:n] - 1 - t] + torch.arange(n) for t, n in enumerate(alive)]
    return torch.cat(places).to(device)
