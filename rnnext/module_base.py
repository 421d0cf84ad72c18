"""What the layers and what the cells share: from nn's arguments to `ops.rnn`, and back.

The checks here are those that torch.nn makes in Python, with its messages, in its order; what
concerns the op itself (T = 0, shapes of the weights, batch_sizes) is checked by the op.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from rnnext import ops, reference
from rnnext.packing import Cut, Lengths, as_reset, as_tensor

_rnn_step = torch.ops.rnnext.rnn_step.default  # looking it up takes time


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

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor],
        lengths: Lengths | None,
        reset: Tensor | None = None,
    ) -> tuple[Any, list[Tensor]]:
        """Run the stack; outputs and final states come in the form that input and hx have."""
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
            y, states = self._scan(x, hx, n, batch_sizes, order, inverse)
            return PackedSequence(y, batch_sizes, order, inverse), states
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
        if dim == 2:
            if lengths is not None:
                raise ValueError("lengths= needs batched 3-D input, but got unbatched 2-D input")
            x, hx = input.unsqueeze(1), [h.unsqueeze(1) for h in hx]
            if reset is None:
                y, states = self._scan(x, hx, 1)
            else:
                y, states = self._run_cut(x, hx, None, as_reset(reset, batched=False), False)
            return y.squeeze(1), [s.squeeze(1) for s in states]
        if reset is not None:
            reset = as_reset(reset, batched=True)
            return self._run_cut(input, hx, lengths, reset, self.batch_first)
        if lengths is not None:
            return self._run_padded(input, hx, lengths)
        if self.batch_first:
            y, states = self._scan(input.transpose(0, 1), hx, input.size(0))
            return y.transpose(0, 1), states
        return self._scan(input, hx, input.size(1))

    def _run_padded(
        self, input: Tensor, hx: Sequence[Tensor], lengths: Lengths
    ) -> tuple[Tensor, list[Tensor]]:
        """Bring the rows into packed order, those of padding last; run them; bring them back."""
        n, steps = input.shape[:2] if self.batch_first else (input.size(1), input.size(0))
        batch_sizes, *orders = torch.ops.rnnext.packing(
            as_tensor(lengths), n, steps, self.batch_first
        )
        if n == 0:
            return self._run(input, hx, None)
        order, inverse, rows, back = (o.to(input.device) for o in orders)
        x = _moved(input.flatten(0, 1), back)
        y, states = self._scan(x, hx, n, batch_sizes, order, inverse)
        return _moved(y, rows).view(*input.shape[:2], y.size(1)), states

    def _run_cut(
        self,
        input: Tensor,
        hx: Sequence[Tensor],
        lengths: Lengths | None,
        reset: Tensor,
        batch_first: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Cut the rows where they begin anew; run the pieces as a packed batch; bring them back.

        hx is where each sequence's first piece begins, as seen in the direction of the scan, unless
        it begins anew itself; the final states are those of the last piece.
        """
        n, steps = input.shape[:2] if batch_first else (input.size(1), input.size(0))
        if n == 0 or steps == 0:
            return self._run(input, hx, None)
        self._check_states(hx, n)
        batch_sizes, *places = torch.ops.rnnext.cutting(
            reset, None if lengths is None else as_tensor(lengths), n, steps, batch_first
        )
        rows, back, first, last, of = (p.to(input.device) for p in places)
        fresh = (reset[:, 0] if batch_first else reset[0]).to(input.device)
        cut = Cut(first, last, of, fresh, self.bidirectional)
        x = _moved(input.flatten(0, 1), back)
        y, states = self._scan(x, [cut.initial(h) for h in hx], of.size(0), batch_sizes)
        y = _moved(y, rows).view(*input.shape[:2], y.size(1))
        return y, [cut.final(state) for state in states]

    def _scan(
        self,
        x: Tensor,
        hx: Sequence[Tensor],
        n: int | None,
        batch_sizes: Tensor | None = None,
        order: Tensor | None = None,
        inverse: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Check x ([T, N, C] or packed [rows, C]) and hx as nn does; run the op.

        hx and the final states [L*D, N, H] are in the caller's order of rows: `order` leads from
        there to the packed order, `inverse` back. n is N, or None where only the op can tell.
        """
        weights = _weights(self, self._names())
        if self._weight_dropout and self.training:
            weights = [
                dropout(w, self._weight_dropout) if name.startswith("weight_hh") else w
                for name, w in zip(self._names(), weights, strict=True)
            ]
        x = _fitting_weight(weights[0], x, ValueError)
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {x.size(-1)}"
            )
        self._check_states(hx, n)
        hx = [_fitting_input(x, h) for h in hx]
        if not hx and n is not None and torch.compiler.is_compiling():
            # They tell a graph the shapes of the final states, which batch_sizes can't; and
            # AOTInductor calls no op with an empty list.
            runs = self._runs()
            hx = [x.new_zeros(runs, n, width) for width in self._states().values()]
        if order is not None:
            hx = [h.index_select(1, order) for h in hx]
        seed = None
        if self._draws() and self.training:
            seed = torch.randint(2**63 - 1, (1,), device="cpu")
        y, *states = self._call_op(
            x,
            hx,
            weights,
            batch_sizes=batch_sizes,
            seed=seed,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            checkpoint_every=self.checkpoint_every or 0,
        )
        if inverse is not None:
            states = [s.index_select(1, inverse) for s in states]
        return y, states

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


class Layer(Stack, nn.RNNBase):
    """A stack of recurrent layers over a sequence; `mode`, set by RNNBase, names the cell."""

    def __init__(
        self, mode: str, *args: Any, checkpoint_every: int | None = None, **kwargs: Any
    ) -> None:
        if mode != "LSTM" and "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(mode, *args, **kwargs)
        check_checkpoint_every(checkpoint_every)
        self.checkpoint_every = checkpoint_every

    def extra_repr(self) -> str:
        """The arguments as nn's layers show them, and checkpoint_every if there is one."""
        shown = super().extra_repr()
        every = self.checkpoint_every
        return f"{shown}, checkpoint_every={every}" if every else shown

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read each parameter where it lies."""

    def _init_flat_weights(self) -> None:
        # RNNBase keeps these lists for cuDNN. Of a parametrized weight nn lists the value, which
        # has a history and so can't be copied; here it is None, and the modules can be.
        self._flat_weights = [self._parameters.get(name) for name in self._flat_weights_names]
        self._flat_weight_refs = [None if w is None else ref(w) for w in self._flat_weights]

    def _kind(self) -> str:
        return self.mode.split("_")[0]

    def _names(self) -> Sequence[str]:
        return self._flat_weights_names

    def _states(self) -> dict[str, int]:
        states = {"hx": self.proj_size or self.hidden_size}
        return {**states, "cx": self.hidden_size} if self.mode == "LSTM" else states

    def _call_op(
        self, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], **options: Any
    ) -> list[Tensor]:
        if self.proj_size:
            return ops.rnn("LSTM_PROJ", x, hx, weights, sizes=(self.proj_size,), **options)
        return ops.rnn(self.mode, x, hx, weights, **options)


class Cell(nn.RNNCellBase):
    """One step of a recurrent cell; `mode` names it."""

    mode: str

    def _run(self, input: Tensor, hx: Sequence[Tensor]) -> list[Tensor]:
        """Run one step; the new states are batched if input is."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"{self._kind()}: Expected input to be 1D or 2D, got {dim}D instead")
        for k, h in enumerate(hx):
            if h.dim() not in (1, 2):
                name = f"hx[{k}]" if len(hx) > 1 else "hidden"
                raise ValueError(
                    f"{self._kind()}: Expected {name} to be 1D or 2D, got {h.dim()}D instead"
                )
        weights = _weights(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        x = _fitting_weight(weights[0], input, RuntimeError)
        n, c = x.shape if dim == 2 else (1, *x.shape)
        if c != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {c} expected {self.input_size}"
            )
        expected = (n, self.hidden_size) if dim == 2 else (self.hidden_size,)
        for k, h in enumerate(hx):
            if h.shape != expected:
                got = list(h.shape) if dim == 2 else [1, *h.shape]
                raise _wrong_state(k, got, n, self.hidden_size)
            _fitting_input(x, h)
        if self.hidden_size and ops.taken_as_is(x):
            return _rnn_step(self.mode, x, hx, *weights)
        # The other ways to run it want [T, N, C] and [L*D, N, H].
        x = x.unsqueeze(0)
        hx = [h.unsqueeze(0) for h in hx]
        if dim == 1:
            x = x.unsqueeze(0)
            hx = [h.unsqueeze(0) for h in hx]
        if not hx and torch.compiler.is_exporting():  # for AOTInductor, as a layer's
            zeros = x.new_zeros(1, n, self.hidden_size)
            hx = [zeros, zeros] if self.mode == "LSTM" else [zeros]
        # The kernels have no cells without units, nn has.
        run = ops.rnn if self.hidden_size else reference.rnn
        _, *states = run(self.mode, x, hx, weights)
        states = [s.squeeze(0) for s in states]
        return states if dim == 2 else [s.squeeze(0) for s in states]

    def _kind(self) -> str:
        return self.mode.split("_")[0] + "Cell"


def check_checkpoint_every(value: Any) -> None:
    """Refuse what is no number of steps; None and 0 stand for keeping everything."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(
            f"checkpoint_every should be of type int, or None, got: {type(value).__name__}"
        )
    if value is not None and value < 0:
        raise ValueError(
            f"checkpoint_every must be a number of steps, or 0 or None to keep everything, got: "
            f"{value}"
        )


def pair(op: str, hx: tuple[Tensor, Tensor] | None) -> Sequence[Tensor]:
    """An LSTM's states as a sequence of none or two."""
    if hx is None:
        return ()
    if isinstance(hx, Tensor):
        raise TypeError(f"{op}(): argument 'hx' must be tuple of Tensors, not Tensor")
    if len(hx) != 2:
        raise RuntimeError(f"{op} expects two hidden states, but got {len(hx)}")
    return hx


def _weights(module: Any, names: Iterable[str]) -> list[Tensor]:
    """The weights as they are at this call, by name: functional_call and others exchange them."""
    stored = module._parameters
    try:
        return [w for name in names if (w := stored[name]) is not None]
    except KeyError:
        # Parametrizations, weight_norm, pruning and data-parallel replicas keep them elsewhere.
        return [w for name in names if (w := getattr(module, name)) is not None]


def _fitting_weight(weight: Tensor, x: Tensor, error: type[Exception]) -> Tensor:
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


def _fitting_input(x: Tensor, h: Tensor) -> Tensor:
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


def _wrong_state(k: int, shape: list[int], n: int, hidden_size: int) -> RuntimeError:
    """nn's error for a cell's state number k that is not [n, hidden_size]."""
    if shape[0] != n:
        return RuntimeError(f"Input batch size {n} doesn't match hidden{k} batch size {shape[0]}")
    got = shape[1] if len(shape) > 1 and shape[1] != hidden_size else shape
    return RuntimeError(
        f"hidden{k} has inconsistent hidden_size: got {got}, expected {hidden_size}"
    )


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
