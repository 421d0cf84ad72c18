"""Layers and cells that drop in for torch.nn's: LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell.

Constructor, parameter names and shapes, initialisation, state_dict, forward, return values and
errors are those of torch.nn; the recurrence runs on `ops.rnn`. What a cell computes stands in
`rnnext.reference` too, as code.

Axis letters: T time, N batch, C input size, H hidden size, L layers, D directions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnext.module_base import Cell, Layer, pair
from rnnext.packing import Lengths

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

Device: TypeAlias = torch.device | str | int | None
Pair: TypeAlias = tuple[Tensor, Tensor]

_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


class LSTM(Layer):
    """A stack of LSTM layers over a sequence: `torch.nn.LSTM` on rnnext's kernels.

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_(t-1) + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_(t-1) + b_hf)
        g_t =    tanh(W_ig x_t + b_ig + W_hg h_(t-1) + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_(t-1) + b_ho)
        c_t = f_t * c_(t-1) + i_t * g_t
        h_t = o_t * tanh(c_t)

    Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000.

    Args:
        input_size: C, features of the input.
        hidden_size: H, features of each state.
        num_layers: L; each layer reads the outputs of the one before.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are [N, T, ...] instead of [T, N, ...]; states are not.
        dropout: probability of zeroing an element of a layer's output (training only, not after
            the last layer). Its seed is drawn from torch's CPU generator at each call.
        bidirectional: D = 2; outputs of both directions stand side by side.
        proj_size: P; if it is not 0, h_t = W_hr (o_t * tanh(c_t)) has P features instead of H, and
            so have the output and what W_hh multiplies (Sak, Senior and Beaufays 2014).
        device, dtype: of the parameters.
        checkpoint_every: of how many steps training keeps the states before the first one alone,
            in place of what each step computes; backward computes that again, from one checkpoint
            to the next. It costs another forward, and memory is bounded by the input, the outputs
            of each layer and one such stretch. The bits of all results are the same. None or 0:
            everything is kept. It can be set later, too: `layer.checkpoint_every = 500`.

    Attributes:
        weight_ih_l{k} [4*H, C] (later layers [4*H, D*H]), weight_hh_l{k} [4*H, H],
        bias_ih_l{k}, bias_hh_l{k} [4*H]: gates in the order i, f, g, o; with proj_size P for H in
        what multiplies h, and weight_hr_l{k} [P, H]; the reverse direction's with `_reverse`
        appended. All are drawn from U(-1/sqrt(H), 1/sqrt(H)).

    Raises:
        ValueError, TypeError: an argument out of range or of a wrong type, as torch.nn.LSTM.

    Example:
        >>> lstm = LSTM(10, 20, num_layers=2)
        >>> y, (h_n, c_n) = lstm(torch.randn(5, 3, 10), lengths=[5, 2, 4])
        >>> y.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__(
            "LSTM", input_size, hidden_size, *options, checkpoint_every=checkpoint_every
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Pair | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Tensor, Pair]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Pair | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[True],
    ) -> tuple[Tensor, Pair, tuple[Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Pair | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[PackedSequence, Pair]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Pair | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[True],
    ) -> tuple[PackedSequence, Pair, tuple[PackedSequence]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Pair | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the stack over a sequence.

        Args:
            input: [T, N, C] ([N, T, C] if batch_first), unbatched [T, C], or a PackedSequence.
            hx: initial states (h_0, c_0), each [L*D, N, H] (h_0 with proj_size [L*D, N, P]), for
                unbatched input without N; default zeros.
            lengths: with padded 3-D input, the length of each row: N integers in 1..T, in any
                order, a tensor or a list. No work is spent on padding, and none of it is read.
            reset: bool [T, N] (as input: [N, T] if batch_first, unbatched [T]): where it is true,
                a sequence begins anew before that step, from zeros. The reverse direction is cut in
                the same places.
            masks: {"weight_hh": [L*D, 4*H, H]}, factors of the recurrent matrices, in eval mode
                too: DropConnect with a mask of one's own, which has no gradient.
            return_states: whether c of the last layer is wanted after every step, too.

        Returns:
            output, (h_n, c_n): outputs of the last layer [T, N, D*H], in the form of the input
            (with lengths, zeros at padding), and the states after each row's own last step. With
            return_states a third, (c,), in the form of output.

        Raises:
            ValueError: input of a wrong number of dimensions or dtype; lengths out of range, of a
                wrong shape, or with input that is unbatched or packed; reset of a wrong shape, or
                with input that is packed; masks that are unknown, missing or of a wrong shape.
            TypeError: lengths that are not integers; reset that is not bool.
            RuntimeError: T = 0; sizes of input or states that do not fit; states of another dtype
                or device.
        """
        output, (h_n, c_n), states = self._run(
            input, pair("lstm", hx), lengths, reset, masks, return_states
        )
        return (output, (h_n, c_n), states) if return_states else (output, (h_n, c_n))

    if TYPE_CHECKING:
        __call__ = forward


class _HiddenLayer(Layer):
    """A layer whose only state is h: GRU and RNN."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the stack over a sequence: as `LSTM.forward`, with h alone for a state."""
        output, (h_n,), _ = self._run(input, () if hx is None else (hx,), lengths, reset, masks)
        return output, h_n

    if TYPE_CHECKING:
        __call__ = forward


class GRU(_HiddenLayer):
    """A stack of GRU layers over a sequence: `torch.nn.GRU` on rnnext's kernels.

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n_t =    tanh(W_in x_t + b_in + r_t * (W_hn h_(t-1) + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_(t-1)

    Cho et al. 2014, with the reset gate applied after the product, as torch.nn and cuDNN do.
    Arguments and errors are `LSTM`'s; parameters too, with 3*H rows in the order r, z, n.

    Raises:
        ValueError: proj_size given.

    Example:
        >>> y, h_n = GRU(10, 20, bidirectional=True)(torch.randn(5, 3, 10))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | None = None,
        **refused: Any,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        more = {"device": device, "dtype": dtype, "checkpoint_every": checkpoint_every, **refused}
        super().__init__("GRU", input_size, hidden_size, *options, **more)


class RNN(_HiddenLayer):
    """A stack of Elman layers over a sequence: `torch.nn.RNN` on rnnext's kernels.

        h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh),  f = tanh or relu

    Elman 1990. Arguments and errors are `LSTM`'s, with `nonlinearity` ("tanh" or "relu") in the
    fourth place; parameters too, with H rows.

    Raises:
        ValueError: another nonlinearity, or proj_size given.

    Example:
        >>> y, h_n = RNN(10, 20, nonlinearity="relu", batch_first=True)(torch.randn(3, 5, 10))
        >>> y.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint_every: int | None = None,
        **refused: Any,
    ) -> None:
        if nonlinearity not in _MODES:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        mode = _MODES[nonlinearity]
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        more = {"device": device, "dtype": dtype, "checkpoint_every": checkpoint_every, **refused}
        super().__init__(mode, input_size, hidden_size, *options, **more)


class LSTMCell(Cell):
    """One step of an LSTM: `torch.nn.LSTMCell` on rnnext's kernels; equations: `LSTM`.

    Args:
        input_size: C.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        device, dtype: of the parameters.

    Attributes:
        weight_ih [4*H, C], weight_hh [4*H, H], bias_ih, bias_hh [4*H]: gates in the order
        i, f, g, o, drawn from U(-1/sqrt(H), 1/sqrt(H)).

    Example:
        >>> h, c = LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    mode = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: Pair | None = None) -> Pair:
        """Run one step.

        Args:
            input: [N, C], or unbatched [C].
            hx: (h, c), each [N, H] or unbatched [H]; default zeros.

        Returns:
            (h', c'), each [N, H] or [H].

        Raises:
            ValueError: tensors that have neither one dimension nor two.
            RuntimeError: sizes, dtypes or devices that do not fit.
        """
        h, c = self._run(input, pair("lstm_cell", hx))
        return h, c

    if TYPE_CHECKING:
        __call__ = forward


class _HiddenCell(Cell):
    """A cell whose only state is h: GRUCell and RNNCell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step: as `LSTMCell.forward`, with h alone for a state."""
        (h,) = self._run(input, () if hx is None else (hx,))
        return h

    if TYPE_CHECKING:
        __call__ = forward


class GRUCell(_HiddenCell):
    """One step of a GRU: `torch.nn.GRUCell` on rnnext's kernels; equations: `GRU`.

    Arguments are `LSTMCell`'s; parameters too, with 3*H rows in the order r, z, n.

    Example:
        >>> GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    mode = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)


class RNNCell(_HiddenCell):
    """One step of Elman's network: `torch.nn.RNNCell` on rnnext's kernels; equation: `RNN`.

    Arguments are `LSTMCell`'s, with `nonlinearity` ("tanh" or "relu") in the fourth place;
    parameters too, with H rows.

    Raises:
        RuntimeError: another nonlinearity, at the first call as torch.nn.RNNCell.

    Example:
        >>> RNNCell(10, 20, nonlinearity="relu")(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    @property
    def mode(self) -> str:  # type: ignore[override]
        if self.nonlinearity not in _MODES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _MODES[self.nonlinearity]
