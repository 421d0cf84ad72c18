"""The recurrent cells in plain PyTorch: the tests' oracle, and the path where there are no kernels.

Axis letters: T time, N batch, C input size, H hidden size, L layers, D directions; of a cell G
gates, of which R see the hidden state, P another size.

A cell is a declaration (`rnnext.cell`): a function of one step, and the names of what it takes.
Of the built-in ones both stand here. With

    x = W_ih x_t + b_ih          [n, G*H]   from the input
    r = W_hh h_(t-1) + b_hh      [n, R*H]   from the hidden state, which is the first of the states

a step is given, by name and each [n, H]: of its `gates` the sum x + r; of `apart_gates` both parts,
since a GRU needs them so; of `input_gates` x alone. Everything else (layers, directions, packed
input, dropout between layers, noise) is `rnn`, once for all cells. All of it can be differentiated
any number of times, on any device, in any floating dtype; autocast does not reach into it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from rnnext.cell import Declaration, declare, width_of
from rnnext.noise import apply_dropout, listed, noise_values

__all__ = ["CELLS", "gru", "lstm", "lstm_proj", "rnn", "rnn_relu", "rnn_tanh"]


def lstm(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM; states h, c.

        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000.
    """
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm_proj(
    i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor, hr: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM with a projection: h' = W_hr (sigmoid(o) * tanh(c')), of width P.

    Sak, Senior and Beaufays 2014.
    """
    h, c = lstm(i, f, g, o, c)
    return linear(h, hr), c


def gru(r: Tensor, z: Tensor, n_x: Tensor, n_h: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU; state h.

        n  = tanh(n_x + sigmoid(r) * n_h)
        h' = (1 - sigmoid(z)) * n + sigmoid(z) * h

    Cho et al. 2014, with the reset gate applied after the product, as torch.nn and cuDNN do.
    """
    z = z.sigmoid()
    n = (n_x + r.sigmoid() * n_h).tanh()
    return (1 - z) * n + z * h


def rnn_tanh(a: Tensor) -> Tensor:
    """One step of Elman's network (1990): h' = tanh(a)."""
    return a.tanh()


def rnn_relu(a: Tensor) -> Tensor:
    """One step of Elman's network with a rectifier: h' = max(0, a)."""
    return a.relu()


CELLS: dict[str, Declaration] = {
    cell.name: cell
    for cell in (
        declare("LSTM", lstm, gates=("i", "f", "g", "o"), states=("h", "c")),
        declare("GRU", gru, gates=("r", "z"), apart_gates=("n",)),
        declare("RNN_TANH", rnn_tanh, gates=("a",)),
        declare("RNN_RELU", rnn_relu, gates=("a",)),
        declare(
            "LSTM_PROJ",
            lstm_proj,
            gates=("i", "f", "g", "o"),
            states={"h": "proj_size", "c": "hidden_size"},
            matrices={"hr": ("proj_size", "hidden_size")},
            sizes=("proj_size",),
        ),
    )
}


def rnn(
    cell: str | Declaration,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    seed: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    sizes: Sequence[int] = (),
    checkpoint_every: int = 0,
    sequences: bool = False,
) -> list[Tensor]:
    """Run a stack of recurrent layers over a sequence.

    Args:
        cell: a declaration, or a name in `CELLS`.
        x: input [T, N, C]; or, with `batch_sizes`, the packed rows [sum(batch_sizes), C].
        h0: no tensor (zeros) or one [L*D, N, width] for each state of the cell (LSTM: h, c, of
            width H).
        weights: for each layer, for each direction, those of `Declaration.weight_names`, in
            torch.nn's order: W_ih [G*H, C or D*H], W_hh [R*H, H] (with K heads [R*H, H/K]: H/K
            units of each gate see H/K of h), if there are biases b_ih [G*H], b_hh [R*H]; then the
            cell's further matrices and its params. Each has the dtype of x; beside x in float32 it
            may be bfloat16.
        batch_sizes: rows at each step, int64 [T] on the CPU, not increasing (a PackedSequence's);
            the last ones may be 0. x may have further rows, up to T*N in all: these are padding,
            never read, and zero in y.
        seed: int64 tensor of one element. Dropout is applied, and the cell's noise is other than
            its expectation, only where it is given. Or the noise itself, as `rnnext.ops.rnn` says.
        num_layers: L.
        bidirectional: whether D is 2.
        dropout: probability of zeroing an element of a layer's output, for all but the last layer.
        sizes: values of the cell's `sizes`.
        checkpoint_every: as `rnnext.ops.rnn` takes it, but without effect: autograd keeps what it
            needs.
        sequences: whether the states of the last layer are wanted after every step.

    A cell may take means over the batch (`rnnext.cell.declare`). Then the last of its weights are
    the sums that these are made of, [T, all their widths], if they are given; or a tensor without
    rows. They are constants.

    Returns:
        [y, h_n, ...] (LSTM: [y, h_n, c_n]): y [T, N, D*H] (or packed rows [sum(batch_sizes), D*H],
        H being the width of h) of the last layer; states [L*D, N, width] after each row's own last
        step; then with `sequences` those of each state but h, [T, N, D*width] or packed; then if
        there are means over the batch the sums [L*D, T, all their widths], without a gradient.

    Raises:
        ValueError: unknown cell, or a number of weights, states or sizes that does not fit it.
        RuntimeError: a sequence of no steps; packed rows that do not fit batch_sizes.

    Example:
        >>> x, w_ih, w_hh = torch.randn(5, 2, 3), torch.randn(16, 3), torch.randn(16, 4)
        >>> y, h_n, c_n = rnn("LSTM", x, [], [w_ih, w_hh])
        >>> y.shape, h_n.shape, c_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), torch.Size([1, 2, 4]))
    """
    directions = 2 if bidirectional else 1
    runs = num_layers * directions
    cell = _declaration(cell)
    names = _check(cell, x, h0, weights, batch_sizes, runs, sizes)
    if x.dtype == torch.float32:
        weights = [w.float() if w.dtype == torch.bfloat16 else w for w in weights]
    # Padded input is packed input with N rows at every step.
    alive = [x.size(1)] * x.size(0) if batch_sizes is None else _alive(x, batch_sizes)
    rows = x.flatten(0, 1) if batch_sizes is None else x[: sum(alive)]
    finals: list[tuple[Tensor, ...]] = []
    sums: list[Tensor] = []
    with _without_autocast(x.device.type):
        for layer in range(num_layers):
            if layer > 0 and dropout > 0 and seed is not None:
                rows = apply_dropout(rows, dropout, seed, layer - 1)
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                w = dict(zip(names, weights[k * len(names) : (k + 1) * len(names)], strict=True))
                numbers = cell.size_values(w["weight_ih"].size(0) // cell.gate_count, sizes)
                if h0:
                    states = tuple(s[k] for s in h0)
                else:
                    widths = cell.state_widths(numbers)
                    states = tuple(rows.new_zeros(alive[0], width) for width in widths)
                noise = _noise_steps(cell, seed, k, rows, alive, numbers)
                batch = BatchSums(cell, w.get("batch_sums"), numbers)
                steps, states = _scan(
                    cell, rows, alive, states, w, numbers, noise, direction == 1, batch
                )
                if cell.batch_sums:
                    count = len(x if batch_sizes is None else batch_sizes)
                    sums.append(batch.all(count, rows))
                outputs.append(steps)
                finals.append(states)
            rows, *others = (torch.cat(parts, -1) for parts in zip(*outputs, strict=True))
    wanted = [rows, *(others if sequences else [])]
    if batch_sizes is None:
        y, *others = (part.view(*x.shape[:2], part.size(1)) for part in wanted)
    else:
        y, *others = (pad(part, (0, 0, 0, len(x) - len(part))) for part in wanted)
    more = [torch.stack(sums)] if sums else []
    return [y, *(torch.stack(slot) for slot in zip(*finals, strict=True)), *others, *more]


class BatchSums:
    """The sums over the batch of one scan: given, or made and kept, [steps, all their widths].

    Args:
        cell: the cell.
        given: those that are given; none, or of no steps: they are made.
        sizes: every size's value.
    """

    def __init__(self, cell: Declaration, given: Tensor | None, sizes: dict[str, int]) -> None:
        self.widths = [width_of(size, sizes) for size in cell.batch_sums]
        self.given = None if given is None or len(given) == 0 else given
        self.made: dict[int, list[Tensor]] = {}

    def mean(self, t: int) -> Callable[[Tensor], Tensor] | None:
        """The function for means at step t; None if the cell takes none."""
        if not self.widths:
            return None
        made = self.made[t] = []
        given = None if self.given is None else self.given[t].split(self.widths)

        def mean(values: Tensor) -> Tensor:
            total = values.sum(0) if given is None else given[len(made)].detach()
            made.append(total.detach())
            return (total / len(values)).unsqueeze(0)

        return mean

    def all(self, count: int, like: Tensor) -> Tensor:
        """All sums, zeros at those of `count` steps that no sequence has."""
        result = like.new_zeros(count, sum(self.widths))
        for t, made in self.made.items():
            result[t] = torch.cat(made)
        return result.detach()


def _alive(x: Tensor, batch_sizes: Tensor) -> list[int]:
    """Rows at each step, without the steps that have none."""
    alive = batch_sizes.tolist()
    used, padded = sum(alive), len(alive) * alive[0]
    if not used <= len(x) <= padded:
        raise RuntimeError(
            f"packed x has {len(x)} rows, but batch_sizes add up to {used} ({padded} with the "
            "padding)"
        )
    return [n for n in alive if n]


def _scan(
    cell: Declaration,
    rows: Tensor,
    alive: list[int],
    states: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    sizes: dict[str, int],
    noise: Sequence[dict[str, Tensor]],
    reverse: bool,
    batch: "BatchSums",
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One layer in one direction: rows [sum(alive), C] -> states [sum(alive), H], the first of
    which is y; final states [N, H].

    The states carry all N rows, of which step t updates the first alive[t]. Forward in time, the
    others have ended and hold their final state; in reverse, they have not begun and hold their
    initial one.
    """
    hidden, summed, apart = sizes["hidden_size"], len(cell.gates), len(cell.apart_gates)
    # The summed gates stay together until they are added.
    widths = [summed * hidden] + [hidden] * (apart + len(cell.input_gates))
    names_x = [*(f"{name}_x" for name in cell.apart_gates), *cell.input_gates]
    names_h = [f"{name}_h" for name in cell.apart_gates]
    product = _recurrent_product(cell, weights, sizes)
    values: dict[str, Any] = {
        **sizes,
        **cell.constants,
        **{name: weights[f"weight_{name}"] for name in cell.matrices},
        **{name: weights[name] for name in cell.params},
    }
    x_parts = linear(rows, weights["weight_ih"], weights.get("bias_ih")).split(widths, -1)
    x_steps = list(zip(*(part.split(alive) for part in x_parts), strict=True))
    outputs = []
    times = range(len(alive))
    for t in reversed(times) if reverse else times:
        n = alive[t]
        now = states if n == alive[0] else tuple(s[:n] for s in states)
        x, *x_apart = x_steps[t]
        values.update(zip(cell.states, now, strict=True))
        values.update(zip(names_x, x_apart, strict=True))
        values.update(noise[t])
        if product is not None:
            r = product(now[0])
            if apart:
                r, *r_apart = r.split(widths[: 1 + apart], -1)
                values.update(zip(names_h, r_apart, strict=True))
            if summed:
                values.update(zip(cell.gates, (x + r).chunk(summed, -1), strict=True))
        new = cell.call(values, batch.mean(t))
        outputs.append(new)
        if n < alive[0]:
            new = tuple(torch.cat((a, s[n:])) for a, s in zip(new, states, strict=True))
        states = new
    ordered = outputs[::-1] if reverse else outputs
    return tuple(torch.cat(steps) for steps in zip(*ordered, strict=True)), states


def _recurrent_product(
    cell: Declaration, weights: dict[str, Tensor], sizes: dict[str, int]
) -> Callable[[Tensor], Tensor] | None:
    """The function h [n, H] -> W_hh h + b_hh [n, R*H]; None where no gate sees h."""
    if cell.recurrent_gate_count == 0:
        return None
    w, b = weights["weight_hh"], weights.get("bias_hh")
    width = cell.state_widths(sizes)[0]
    if w.size(1) == width:
        return lambda h: linear(h, w, b)
    # K heads of U units: the rows of W_hh are [R, K, U], and each head multiplies its own part.
    units = w.size(1)
    gates, heads = cell.recurrent_gate_count, width // units
    blocks = w.unflatten(0, (gates, heads, units)).permute(1, 3, 0, 2).flatten(2)  # [K, U, R*U]

    def product(h: Tensor) -> Tensor:
        parts = h.unflatten(1, (heads, units)).transpose(0, 1) @ blocks  # [K, n, R*U]
        r = parts.unflatten(2, (gates, units)).permute(1, 2, 0, 3).flatten(1)
        return r if b is None else r + b

    return product


def _noise_steps(
    cell: Declaration,
    seed: Tensor | None,
    place: int,
    rows: Tensor,
    alive: list[int],
    sizes: dict[str, int],
) -> list[dict[str, Tensor]]:
    """The cell's noise at each step, by name: [alive[t], width]."""
    steps: list[dict[str, Tensor]] = [{} for _ in alive]
    widths = [width_of(noise.size, sizes) for noise in cell.noise.values()]
    given = None
    if seed is not None and seed.is_floating_point():
        given = seed[place].split(widths, 1)
    for number, (name, noise) in enumerate(cell.noise.items()):
        count = len(rows) if noise.per == "step" else alive[0]
        if given is not None:
            values = given[number][:count]
        else:
            values = noise_values(noise, number, seed, place, count, widths[number], rows)
        parts = values.split(alive) if noise.per == "step" else [values[:n] for n in alive]
        for step, part in zip(steps, parts, strict=True):
            step[name] = part
    return steps


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    # Not asked of torch.amp.is_autocast_available, which torch 2.11 can't compile.
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _declaration(cell: str | Declaration) -> Declaration:
    if isinstance(cell, Declaration):
        return cell
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}: expected one of {', '.join(CELLS)}")
    return CELLS[cell]


def _check(
    cell: Declaration,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    runs: int,
    sizes: Sequence[int],
) -> list[str]:
    """Refuse what the loop would misread; return the names of one direction's weights."""
    plain, biased = cell.weight_names(bias=False), cell.weight_names(bias=True)
    if len(weights) not in (len(plain) * runs, len(biased) * runs):
        raise ValueError(
            f"got {len(weights)} weights for {runs} layers times directions of {cell.name}: "
            f"expected {len(plain) * runs} ({', '.join(plain)}) or {len(biased) * runs} "
            f"({', '.join(biased)})"
        )
    if len(h0) not in (0, len(cell.states)):
        raise ValueError(
            f"got {len(h0)} initial states: {cell.name} expects none or {len(cell.states)}"
        )
    if len(sizes) != len(cell.sizes):
        raise ValueError(
            f"got {len(sizes)} sizes: {cell.name} expects {len(cell.sizes)} ({listed(cell.sizes)})"
        )
    if (x if batch_sizes is None else batch_sizes).size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return plain if len(weights) == len(plain) * runs else biased
