"""What every stack of recurrent layers over a sequence has: from a layer's arguments to `ops.rnn`.

The checks here are those that torch.nn makes in Python, with its messages, in its order; what
concerns the op itself (T = 0, shapes of the weights, batch_sizes) is checked by the op.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnext import ops
from rnnext.masks import WEIGHT, Masks, checked
from rnnext.noise import Noise
from rnnext.packing import Cut, Lengths, Sorted, as_reset, as_tensor


class Stack:
    """What every stack of recurrent layers over a sequence has, whatever its modules are made of.

    It reads a layer's arguments by their names in torch.nn, and asks it for the rest.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    checkpoint_every: int | None = None  # of layers, too, that were torch.nn's, or are older
    training: bool
    _weight_dropout: float = 0.0  # `rnnext.cells.drop_connect` sets it

    def _kind(self) -> str:
        """The layer's name in errors."""
        raise NotImplementedError

    def _names(self) -> Sequence[str]:
        """Names of its weights, in the op's order."""
        raise NotImplementedError

    def _states(self) -> dict[str, int]:
        """The states by their names in errors, and their widths."""
        raise NotImplementedError

    def _draws(self) -> bool:
        """Whether it needs random numbers in training."""
        return self.dropout > 0 and self.num_layers > 1

    def _call_op(
        self, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], **options: Any
    ) -> list[Tensor]:
        raise NotImplementedError

    def _noise(self) -> Mapping[str, tuple[Noise, int]]:
        """What its cell draws, by name, and how wide that is."""
        return {}

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor],
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: bool = False,
    ) -> tuple[Any, list[Tensor], tuple[Any, ...]]:
        """Run the stack; outputs, final states and sequences of states come in the form that input
        and hx have.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths= was given with a PackedSequence, which has its own")
            if reset is not None:
                raise ValueError("reset= was given with a PackedSequence: pad it, with lengths=")
            x, batch_sizes, order, inverse = input
            if x.dim() != 2:
                raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
            n = _batch_size(batch_sizes, hx, order)
            _check_rows(x, batch_sizes, n)
            arranged = None if order is None and inverse is None else Sorted(order, inverse)
            given = self._given(masks, x.shape[:1], [int(batch_sizes[0])] if masks else [])
            if given is not None and order is not None:
                given = given.packed(None, order)
            rows, states = self._scan(x, hx, n, batch_sizes, arranged, given, return_states)
            packed = [PackedSequence(part, batch_sizes, order, inverse) for part in rows]
            return packed[0], states, tuple(packed[1:])
        dim = input.dim()
        if input.is_nested:
            raise RuntimeError(f"{self._kind()}: input is a nested tensor: pad it, with lengths=")
        if dim not in (2, 3):
            kind = self._kind()
            got = f"{dim}D tensor" if kind == "RNN" else f"{dim}D"
            raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {got} instead")
        for h in hx:
            if h.dim() != dim:
                raise _wrong_dim(dim, hx, list(self._states()))
        if reset is not None:
            reset = as_reset(reset, batched=dim == 3)
        if dim == 2:
            if lengths is not None:
                raise ValueError("lengths= needs batched 3-D input, but got unbatched 2-D input")
            given = self._given(masks, input.shape[:1], [])
            x, hx = input.unsqueeze(1), [h.unsqueeze(1) for h in hx]
            parts, states = self._run_batch(x, hx, None, reset, given, return_states, False)
            y, *more = (part.squeeze(1) for part in parts)
            return y, [s.squeeze(1) for s in states], tuple(more)
        given = self._given(masks, input.shape[:2], [input.size(0 if self.batch_first else 1)])
        (y, *more), states = self._run_batch(
            input, hx, lengths, reset, given, return_states, self.batch_first
        )
        return y, states, tuple(more)

    def _run_batch(
        self,
        input: Tensor,
        hx: Sequence[Tensor],
        lengths: Lengths | None,
        reset: Tensor | None,
        given: Masks | None,
        return_states: bool,
        batch_first: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run a padded batch: as it is; or, with lengths or cuts, its rows in packed order, those
        of padding last. Where sequences begin anew they are cut, and the pieces are run.
        """
        n, steps = input.shape[:2] if batch_first else (input.size(1), input.size(0))
        arranged: Sorted | Cut | None = None
        if reset is not None:
            ends = None if lengths is None else as_tensor(lengths)
            batch_sizes, *places = torch.ops.rnnext.cutting(reset, ends, n, steps, batch_first)
            fresh = reset[:, 0] if batch_first else reset[0]
            places = [p.to(input.device) for p in (*places, fresh)]
            rows, back, first, last, order, anew = places
            arranged = Cut(first, last, order, anew, self.bidirectional)
        elif lengths is not None:
            batch_sizes, *places = torch.ops.rnnext.packing(
                as_tensor(lengths), n, steps, batch_first
            )
            order, inverse, rows, back = (p.to(input.device) for p in places)
            arranged = Sorted(order, inverse)
        if arranged is None or n == 0:
            x = input.transpose(0, 1) if batch_first else input
            given = given.transposed(n) if given is not None and batch_first else given
            parts, states = self._scan(x, hx, n, given=given, return_states=return_states)
            return [y.transpose(0, 1) for y in parts] if batch_first else parts, states
        x = _moved(input.flatten(0, 1), back)
        given = None if given is None else given.packed(rows, order)
        parts, states = self._scan(x, hx, n, batch_sizes, arranged, given, return_states)
        return [_moved(y, rows).view(*input.shape[:2], y.size(1)) for y in parts], states

    def _given(
        self, masks: Mapping[str, Tensor] | None, rows: Sequence[int], sequences: Sequence[int]
    ) -> Masks | None:
        """Masks handed in, checked, for input with these leading dimensions."""
        if masks is None:
            return None
        noise, matrices = self._noise(), [n for n in self._names() if n.startswith(WEIGHT)]
        shape = getattr(self, matrices[0]).shape if matrices else None
        given = checked(self._kind(), masks, noise, shape, self._runs(), rows, sequences)
        if given.has_noise and self.training and Stack._draws(self):
            raise ValueError(
                f"{self._kind()}: masks= takes the place of the seed, which dropout="
                f"{self.dropout} between the layers needs: set dropout to 0, or run the layers one "
                "by one"
            )
        return given

    def _scan(
        self,
        x: Tensor,
        hx: Sequence[Tensor],
        n: int | None,
        batch_sizes: Tensor | None = None,
        arranged: Sorted | Cut | None = None,
        given: Masks | None = None,
        return_states: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Check x ([T, N, C] or packed [rows, C]) and hx as nn does; run the op.

        hx and the final states [L*D, N, H] are the caller's sequences, and `arranged` says which of
        them the op's are. n is N, or None where only the op can tell. Returns y, with the sequences
        of the other states if wanted, and the final states.
        """
        seed, draws = None, self._draws() and self.training
        if draws or (self._weight_dropout and self.training):
            seed = torch.randint(2**63 - 1, (1,), device="cpu")
        weights = self._weights(given, seed)
        x = fitting_weight(weights[0], x, ValueError)
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {x.size(-1)}"
            )
        self._check_states(hx, n)
        hx = [fitting_input(x, h) for h in hx]
        if not hx and n is not None and torch.compiler.is_compiling():
            # They tell a graph the shapes of the final states, which batch_sizes can't; and
            # AOTInductor calls no op with an empty list.
            runs = self._runs()
            hx = [x.new_zeros(runs, n, width) for width in self._states().values()]
        if arranged is not None:
            hx = [arranged.initial(h) for h in hx]
        if given is not None and given.has_noise:
            seed = given.noise(self._noise(), x.shape[:-1].numel(), x.dtype)
        elif not draws:
            seed = None
        y, *results = self._call_op(
            x,
            hx,
            weights,
            batch_sizes=batch_sizes,
            seed=seed,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout if draws else 0.0,
            checkpoint_every=self.checkpoint_every or 0,
            sequences=return_states,
        )
        count = len(self._states()) if return_states else len(results)
        states, sequences = results[:count], results[count:]
        if arranged is not None:
            states = [arranged.final(s) for s in states]
        return [y, *sequences], states

    def _weights(self, given: Masks | None, seed: Tensor | None) -> list[Tensor]:
        """The weights, with DropConnect."""
        weights, rate = weights_of(self, self._names()), self._weight_dropout
        masks = None if given is None else given.weight
        if masks is None and (not rate or seed is None):
            return weights
        places = [k for k, name in enumerate(self._names()) if name.startswith(WEIGHT)]
        for place, k in enumerate(places):
            if masks is not None:
                weights[k] = weights[k] * masks[place]
            elif seed is not None:
                weights[k] = ops.drop_connected(weights[k], rate, seed, place)
        return weights

    def _check_states(self, hx: Sequence[Tensor], n: int | None) -> None:
        widths = self._states().values() if hx else ()
        for k, (h, width) in enumerate(zip(hx, widths, strict=True)):
            expected = (self._runs(), n, width)
            if h.shape != expected:
                name = f"hidden[{k}]" if len(hx) > 1 else "hidden"
                raise RuntimeError(f"Expected {name} size {expected}, got {list(h.shape)}")

    def _runs(self) -> int:
        """L * D."""
        return self.num_layers * (2 if self.bidirectional else 1)


def weights_of(module: Any, names: Iterable[str]) -> list[Tensor]:
    """The weights as they are at this call, by name: functional_call and others exchange them."""
    stored = module._parameters
    try:
        return [w for name in names if (w := stored[name]) is not None]
    except KeyError:
        # Parametrizations, weight_norm, pruning and data-parallel replicas keep them elsewhere.
        return [w for name in names if (w := getattr(module, name)) is not None]


def fitting_weight(weight: Tensor, x: Tensor, error: type[Exception]) -> Tensor:
    """x, which must have the device of the weights and, but under autocast, their dtype."""
    if x.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {weight.device}"
        )
    if x.dtype == weight.dtype or ops.autocasts(x, weight):
        return x
    raise error(
        f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
        f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
    )


def fitting_input(x: Tensor, h: Tensor) -> Tensor:
    """h, which must have the device of x and, but under autocast, its dtype."""
    if h.device != x.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {x.device} and hidden tensor at {h.device}"
        )
    if h.dtype == x.dtype or ops.autocasts(x, h):
        return h
    raise RuntimeError(
        "Input and hidden tensors are not the same dtype, "
        f"found input tensor with {x.dtype} and hidden tensor with {h.dtype}"
    )


def _wrong_dim(dim: int, hx: Sequence[Tensor], names: Sequence[str]) -> RuntimeError:
    """nn's error for a layer's states that are not batched as its input is."""
    given = f"For {'batched' if dim == 3 else 'unbatched'} {dim}-D input, "
    if len(hx) == 1:
        text = f"hx should also be {dim}-D but got {hx[0].dim()}-D tensor"
    else:
        dims = ", ".join(f"{h.dim()}-D" for h in hx)
        text = f"{' and '.join(names)} should also be {dim}-D but got ({dims}) tensors"
    return RuntimeError(given + text)


def _batch_size(batch_sizes: Tensor, hx: Sequence[Tensor], order: Tensor | None) -> int | None:
    """N of a PackedSequence, as far as a traced graph may know it: it can't read batch_sizes."""
    if order is not None:
        return order.size(0)
    if torch.compiler.is_compiling():
        return hx[0].size(1) if hx else None
    return int(batch_sizes[0])


def _check_rows(x: Tensor, batch_sizes: Tensor, n: int | None) -> None:
    """Refuse more rows than the sequences have: the op would take those at the end for padding."""
    if torch.compiler.is_compiling() or n is None or len(x) > len(batch_sizes) * n:
        return
    if 0 < (rows := int(batch_sizes.sum())) < len(x):
        raise RuntimeError(f"packed input has {len(x)} rows, but batch_sizes add up to {rows}")


def _moved(rows: Tensor, places: Tensor) -> Tensor:
    """The rows, each at its own of all the places.

    This gathers in the backward, where the backward of index_select would add up.
    """
    return rows.new_empty(rows.shape).index_copy(0, places, rows)
