"""The LSTM with recurrent batch norm: statistics over the sequences of a batch, of every step.

The kernels sum over the sequences, and hand the sums back: the layer keeps running averages of the
means and variances that follow from these, and in eval mode gives the sums that follow from the
averages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnext import ops
from rnnext.cell import Declaration, declare
from rnnext.packing import Lengths, as_tensor

__all__ = ["BatchNormLSTM"]

Pair = tuple[Tensor, Tensor]

_GATES = ("i", "f", "g", "o")


def _step(
    i_x: Tensor,
    f_x: Tensor,
    g_x: Tensor,
    o_x: Tensor,
    i_h: Tensor,
    f_h: Tensor,
    g_h: Tensor,
    o_h: Tensor,
    c: Tensor,
    gain_x_i: Tensor,
    gain_x_f: Tensor,
    gain_x_g: Tensor,
    gain_x_o: Tensor,
    gain_h_i: Tensor,
    gain_h_f: Tensor,
    gain_h_g: Tensor,
    gain_h_o: Tensor,
    bias_i: Tensor,
    bias_f: Tensor,
    bias_g: Tensor,
    bias_o: Tensor,
    gain_c: Tensor,
    shift_c: Tensor,
    eps: float,
    batch_mean: Callable[[Tensor], Tensor],
) -> Pair:
    """The equations of `BatchNormLSTM`. Of each norm, the sum comes before that of the squares."""

    def norm(values: Tensor, gain: Tensor) -> Tensor:
        centred = values - batch_mean(values)
        return centred * (gain / torch.sqrt(batch_mean(centred * centred) + eps))

    i = (norm(i_x, gain_x_i) + norm(i_h, gain_h_i) + bias_i).sigmoid()
    f = (norm(f_x, gain_x_f) + norm(f_h, gain_h_f) + bias_f).sigmoid()
    g = (norm(g_x, gain_x_g) + norm(g_h, gain_h_g) + bias_g).tanh()
    o = (norm(o_x, gain_x_o) + norm(o_h, gain_h_o) + bias_o).sigmoid()
    c = f * c + i * g
    return o * (norm(c, gain_c) + shift_c).tanh(), c


@functools.cache
def _declaration(eps: float) -> Declaration:
    names = [f"{kind}_{gate}" for kind in ("gain_x", "gain_h", "bias") for gate in _GATES]
    return declare(
        "BatchNormLSTM",
        _step,
        apart_gates=_GATES,
        states=("h", "c"),
        params=dict.fromkeys([*names, "gain_c", "shift_c"]),
        constants={"eps": eps},
        batch_sums=("hidden_size",) * 18,
    )


@functools.cache
def _kernel(eps: float) -> str | None:
    from rnnext.codegen.build import kernel

    return kernel(_declaration(eps))


_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
        # The steps that have statistics of their own come first.
        own = sum(n > 1 for n in alive) if self.training else 0
        first = sum(alive[:own])
        outputs = []
        if own > 0:
            y, h, c, sums = self._call(rows[:first], alive[:own], h, c, suffix, None)
            outputs.append(y)
            self._keep(sums, alive[:own], suffix)
        if own < len(alive):
            n, given = alive[own], self._expected(alive, own, suffix)
            y, new_h, new_c, _ = self._call(rows[first:], alive[own:], h[:n], c[:n], suffix, given)
            outputs.append(y)
            h, c = torch.cat([new_h, h[n:]]), torch.cat([new_c, c[n:]])
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0], (h, c)

    def _call(
        self,
        rows: Tensor,
        alive: list[int],
        h: Tensor,
        c: Tensor,
        suffix: str,
        sums: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y, the final states, and the sums over the sequences, [steps, 18 * H]."""
        get = {name: getattr(self, f"{name}{suffix}") for name in _NAMES}
        gates = [part for name in ("gain_x", "gain_h", "bias") for part in get[name].chunk(4)]
        if sums is None:
            sums = rows.new_empty(0, 18 * self.hidden_size)
        weights = [get["weight_ih"], get["weight_hh"], *gates, get["gain_c"], get["shift_c"], sums]
        y, h_n, c_n, sums = ops.rnn(
            _kernel(self.eps) or _declaration(self.eps),
            rows,
            [h.unsqueeze(0), c.unsqueeze(0)],
            weights,
            batch_sizes=torch.tensor(alive),
        )
        return y, h_n[0], c_n[0], sums[0]

    @torch.no_grad()
    def _keep(self, sums: Tensor, alive: list[int], suffix: str) -> None:
        """Move the running averages towards the statistics of these steps; of those that share the
        last place, towards the mean of theirs.
        """
        n = sums.new_tensor(alive).unsqueeze(1)
        last = self.max_length - 1
        for name, (mean, var) in self._parts(sums).items():
            for kind, values in (("mean", mean / n), ("var", var / (n - 1))):
                running = getattr(self, f"{kind}_{name}{suffix}")
                if len(values) > last:
                    values = torch.cat([values[:last], values[last:].mean(0, keepdim=True)])
                running[: len(values)].lerp_(values.to(running), self.momentum)

    def _expected(self, alive: list[int], first: int, suffix: str) -> Tensor:
        """The sums over sequences, from a step on, that have the running averages."""
        places = [min(t, self.max_length - 1) for t in range(first, len(alive))]
        kept = [
            getattr(self, f"{kind}_{name}{suffix}")[places].unflatten(1, (-1, self.hidden_size))
            for name in ("x", "h", "c")
            for kind in ("mean", "var")
        ]
        x, h, c = (torch.stack(kept[k : k + 2], 2) for k in (0, 2, 4))
        # Of each gate, the norm of the input's part comes first.
        both = torch.stack([x, h], 2).flatten(2, 3)
        n = kept[0].new_tensor(alive[first:]).unsqueeze(1)
        return torch.cat([both.flatten(1), c.flatten(1)], 1) * n

    def _parts(self, sums: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each norm the sums of values and of squares, [steps, width], as its buffers lie."""
        *gates, c = sums.unflatten(1, (-1, 2, self.hidden_size)).unbind(1)
        of_x, of_h = (torch.stack(gates[k::2], 2) for k in (0, 1))  # [steps, 2, 4, H]
        found = {"x": of_x, "h": of_h, "c": c.unsqueeze(2)}
        return {name: (v[:, 0].flatten(1), v[:, 1].flatten(1)) for name, v in found.items()}

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]

    if TYPE_CHECKING:
        __call__ = forward


_NAMES = ("weight_ih", "weight_hh", "bias", "gain_x", "gain_h", "gain_c", "shift_c")


def _reversed_rows(alive: list[int], device: torch.device) -> Tensor:
    """For each packed row, the place of the one as far from its sequence's end; its own inverse."""
    sizes = torch.tensor(alive)
    first = sizes.cumsum(0) - sizes
    lengths = (sizes.unsqueeze(1) > torch.arange(alive[0])).sum(0)
    places = [first[lengths[:n] - 1 - t] + torch.arange(n) for t, n in enumerate(alive)]
    return torch.cat(places).to(device)
