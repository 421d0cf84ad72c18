"""What the layers of torch.nn share, and what its cells share: from nn's arguments to `ops.rnn`.

The checks here are those that torch.nn makes in Python, with its messages, in its order; what
concerns the op itself (T = 0, shapes of the weights, batch_sizes) is checked by the op.
"""

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from rnnext import ops, reference
from rnnext.stack import Stack, fitting_input, fitting_weight, weights_of

_rnn_step = torch.ops.rnnext.rnn_step.default  # looking it up takes time


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
        weights = weights_of(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        x = fitting_weight(weights[0], input, RuntimeError)
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
            fitting_input(x, h)
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


def _wrong_state(k: int, shape: list[int], n: int, hidden_size: int) -> RuntimeError:
    """nn's error for a cell's state number k that is not [n, hidden_size]."""
    if shape[0] != n:
        return RuntimeError(f"Input batch size {n} doesn't match hidden{k} batch size {shape[0]}")
    got = shape[1] if len(shape) > 1 and shape[1] != hidden_size else shape
    return RuntimeError(
        f"hidden{k} has inconsistent hidden_size: got {got}, expected {hidden_size}"
    )
