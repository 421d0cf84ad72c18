"""The op that every layer calls: kernel or reference; and its fake kernels, which give shapes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rnnext import _load, batched_grads, derivatives, reference  # noqa: F401 (registers rules)
from rnnext.cell import STATES, Declaration, split_name
from rnnext.noise import DROP_CONNECT, Dropout, noise_values

_HALF = (torch.float16, torch.bfloat16)
_AUTOCAST = (torch.float32, *_HALF)
_COMPUTED = (torch.float32, torch.float64)
_KERNELS = (torch.float64, *_AUTOCAST)
# Cells that CUDA kernels run: those that are built in, and written ones that are loaded for GPUs.
_ON_CUDA = {*reference.CELLS}


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
    """Run a stack of recurrent layers over whole sequences.

    On a CPU, and on a GPU where the CUDA kernels were built, this is the fused kernel; elsewhere it
    is :func:`rnnext.reference.rnn`, after one warning for each kind of device and dtype. A cell
    written in Python is compiled for the GPU at its first call there.

    In float16 and bfloat16 all is computed in float32, states included, and the results are
    rounded; but in bfloat16 the products round their operands, where the processor multiplies
    bfloat16. So it is under autocast, whatever of float32, float16 and bfloat16 is given, in any
    mixture: the inputs are not rounded, the results have autocast's dtype. As everywhere in torch,
    autocast leaves float64 alone.

    Args:
        cell: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"``, ``"RNN_RELU"`` or ``"LSTM_PROJ"`` (whose h is
            projected to a width of its own), or the name of a compiled cell; or a declaration,
            which always runs the reference.
        x: ``[T, N, C]``, or with ``batch_sizes`` the packed rows ``[sum(batch_sizes), C]``.
        h0: the initial states, each ``[L * D, N, H]`` (LSTM: h, c; the others: h), or an empty
            list for zeros.
        weights: ``W_ih [G * H, C or D * H]``, ``W_hh [G * H, H]`` and, with biases,
            ``b_ih [G * H]``, ``b_hh [G * H]`` of each layer and direction, in the order of
            :class:`torch.nn.LSTM`. Each has the dtype of x; beside x in float32 it may be bfloat16.
        batch_sizes: how many sequences are alive at each step: int64 on the CPU, ``[T]``, never
            increasing; the last ones may be 0. x may have further rows, up to ``T * N`` in all:
            these are padding, never read, and zero in y.
        seed: int64 tensor of one element on the CPU: seeds the dropout between layers and the
            cell's noise; without it there is none. Or in its place that noise itself, side by side
            in the order of its declaration: ``[L * D, T * N or packed rows, width of all noise]``;
            what there is one of for all steps stands in the rows of the first. Then dropout must
            be 0, and nothing is differentiated with respect to it.
        num_layers: L.
        bidirectional: D is 2 instead of 1.
        dropout: probability that an output of a layer, but not of the last one, is zeroed.
        sizes: of the cell besides H; ``"LSTM_PROJ"`` has one, the width of h.
        checkpoint_every: of how many steps training keeps the states before the first one alone;
            backward computes the rest again, from one of them to the next. 0: it keeps what every
            step computes. The results have the same bits. The reference keeps everything.
        sequences: whether the states of the last layer are wanted after every step.

    Returns:
        ``[y, h_n]``, for LSTM ``[y, h_n, c_n]``: y is ``[T, N, D * H]`` or packed
        ``[rows, D * H]``, the final states are ``[L * D, N, H]``; then with ``sequences`` those of
        each state but h, whose sequence is y, in the form of y.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument and
            what was expected.
        ValueError: there is no such cell.

    Example:
        >>> lstm = torch.nn.LSTM(3, 4)
        >>> y, h_n, c_n = rnn("LSTM", torch.randn(5, 2, 3), [], list(lstm.parameters()))
        >>> y.shape
        torch.Size([5, 2, 4])
    """
    dtype = _rounded_dtype(x, *h0, *weights)
    kernel_dtype = x.dtype if dtype is None else torch.float32
    fused = isinstance(cell, str) and has_kernel(cell, x.device.type, kernel_dtype)
    transforms = derivatives.transforms_active()
    if dtype is not None:
        # Where nothing is differentiated, the op converts x, in memory that it keeps at hand.
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *h0, *weights))
        if learns or transforms or not fused or dtype not in _HALF:
            x = x.float()
        h0 = [h.float() for h in h0]
        # The kernels read matrices of bfloat16 as they lie.
        weights = [w if w.dtype == torch.bfloat16 else w.float() for w in weights]
        seed = seed if seed is None or not seed.is_floating_point() else seed.float()
    options = (
        batch_sizes,
        seed,
        num_layers,
        bidirectional,
        dropout,
        sizes,
        dtype if dtype in _HALF else None,
        checkpoint_every,
    )
    if fused:
        run = derivatives.rnn if transforms else torch.ops.rnnext.rnn
        cell = str(cell) + STATES if sequences else str(cell)
        results = run(cell, x, h0, weights, *options)
    else:
        results = reference.rnn(
            cell,
            x,
            h0,
            weights,
            batch_sizes=batch_sizes,
            seed=seed,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            sizes=sizes,
            sequences=sequences,
        )
    return results if dtype is None else [result.to(dtype) for result in results]


def drop_connected(weight: Tensor, p: float, seed: Tensor, place: int) -> Tensor:
    """A recurrent matrix with elements dropped: times 0 with probability p, else 1 / (1 - p).

    Wan et al. 2013. The factors are those of `rnnext.noise.noise_values` number 8, which no cell
    has: on a CPU from the kernels' generator.

    Args:
        weight: ``[rows, columns]``.
        p: the probability.
        seed: int64 tensor of one element on the CPU.
        place: layer * D + direction.
    """
    rows, columns = weight.shape
    if weight.device.type in ("cpu", "meta") and weight.dtype in _KERNELS:
        dtype = weight.dtype if weight.dtype in _COMPUTED else torch.float32
        mask = torch.ops.rnnext.dropout_mask(seed, rows, columns, place, p, dtype=dtype)
        return weight * mask.to(weight.device, weight.dtype)
    like = weight.new_empty(0, dtype=weight.real.dtype)
    return weight * noise_values(Dropout(p), DROP_CONNECT, seed, place, rows, columns, like)


def taken_as_is(x: Tensor) -> bool:
    """Whether the op takes x, and what fits it, as they are: no cast, no transform, no trace. The
    cell is a built-in one.
    """
    return (
        (x.is_cpu or x.is_cuda)
        and x.dtype in _COMPUTED
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu" if x.is_cpu else "cuda")
        and not derivatives.transforms_active()
        and (x.is_cpu or _has_cuda_kernels())
    )


def autocasts(*tensors: Tensor) -> bool:
    """Whether autocast is on where these tensors are, and concerns them all."""
    kind = tensors[0].device.type
    # torch.amp.is_autocast_available, which would say that meta has none, torch 2.11 can't compile.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return False
    return all(t.dtype in _AUTOCAST for t in tensors)


def _rounded_dtype(*inputs: Tensor) -> torch.dtype | None:
    """The dtype that results are rounded to, where float32 is what computes them."""
    if autocasts(*inputs):
        return torch.get_autocast_dtype(inputs[0].device.type)
    dtype = inputs[0].dtype
    return dtype if dtype in _HALF and all(t.dtype == dtype for t in inputs) else None


def has_kernel(cell: str, device: str, dtype: torch.dtype) -> bool:
    """Whether a kernel runs a cell; if not, after one warning."""
    if dtype in _KERNELS and device in ("cpu", "meta"):
        return True
    return _has_kernel_elsewhere(cell, device, dtype)


def _has_kernel_elsewhere(cell: str, device: str, dtype: torch.dtype) -> bool:
    if dtype in _KERNELS and device == "cuda" and _has_cuda_kernels():
        if cell not in _ON_CUDA and import_module("rnnext.codegen.cuda").runs(cell):
            _ON_CUDA.add(cell)
        return cell in _ON_CUDA
    _warn_of_reference(device, dtype)
    return False


# torch.compile, which knows neither warnings nor the compiling of cells, calls it while it traces.
_has_kernel_elsewhere._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _has_cuda_kernels() -> bool:
    return _load.cuda_version() is not None


@functools.cache
def _warn_of_reference(device: str, dtype: torch.dtype) -> None:
    remedy = ""
    if device == "cuda" and torch.version.cuda and _load.cuda_version() is None:
        remedy = (
            ". rnnext was built without its CUDA kernels; build them in its source folder:\n"
            f"    export RNNEXT_CUDA=1 && {_load.BUILD_COMMAND}"
        )
    warnings.warn(
        f"rnnext has no kernel for {dtype} on {device}: this call, and later ones like it, run "
        f"the slower reference in plain PyTorch{remedy}",
        stacklevel=5,
    )


@torch.library.impl("rnnext::load_cached_cell", "CompositeExplicitAutograd")
def _load_cached_cell(name: str) -> bool:
    return bool(import_module("rnnext.codegen.build").load_cached(name))


@torch.library.impl("rnnext::build_cuda_cell", "CompositeExplicitAutograd")
def _build_cuda_cell(name: str) -> bool:
    return bool(import_module("rnnext.codegen.cuda").load(name))


@functools.cache
def _cell_shape(cell: str, sizes: tuple[int, ...]) -> tuple[int, int, int, list[int]]:
    """Columns that training keeps for each row, streams, columns of sums over sequences, and the
    width of each state.
    """
    _, record, streams, sums, *widths = torch.ops.rnnext.cell_shape(cell, sizes)
    return record, streams, sums, widths


@functools.cache
def _gates(cell: str, sizes: int) -> int:
    return int(torch.ops.rnnext.cell_shape(cell, (1,) * (1 + sizes))[0])


def _shape_of(cell: str, weights: Sequence[Tensor], sizes: Sequence[int] | None) -> Any:
    sizes = sizes or ()
    hidden = int(weights[0].shape[0]) // _gates(cell, len(sizes))
    return _cell_shape(cell, (hidden, *sizes))


@torch.library.register_fake("rnnext::rnn")
def _rnn_fake(  # type: ignore[no-untyped-def]
    cell,
    x,
    h0,
    weights,
    batch_sizes,
    seed,
    num_layers,
    bidirectional,
    dropout,
    sizes,
    operand_dtype=None,
    checkpoint_every=0,
):
    _check_devices(x, (*h0, *weights), (batch_sizes, seed))
    if operand_dtype is not None and x.dtype in _HALF:
        x = x.new_empty(x.shape, dtype=torch.float32)
    directions = 2 if bidirectional else 1
    _, streams, sums, widths = _shape_of(cell, weights, sizes)
    y = x.new_empty((*x.shape[:-1], directions * widths[0]))
    batch = x.shape[streams] if batch_sizes is None else _batch_of(batch_sizes, h0)
    finals = [x.new_empty((num_layers * directions, batch, width)) for width in widths]
    others = [width for k, width in enumerate(widths) if k % (len(widths) // streams)]
    others = others if split_name(cell)[1] else []
    form = x.shape[streams - 1 : -1]
    steps = form[0] if batch_sizes is None else batch_sizes.shape[0]
    more = [x.new_empty((num_layers * directions, steps, sums))] if sums else []
    return [y, *finals, *(x.new_empty((*form, directions * width)) for width in others), *more]


@torch.library.register_fake("rnnext::rnn_train")
def _rnn_train_fake(  # type: ignore[no-untyped-def]
    cell,
    x,
    h0,
    weights,
    batch_sizes,
    seed,
    num_layers,
    bidirectional,
    dropout,
    sizes,
    operand_dtype=None,
    checkpoint_every=0,
):
    outputs = _rnn_fake(
        cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes
    )
    directions = 2 if bidirectional else 1
    record, streams, _, widths = _shape_of(cell, weights, sizes)
    steps = x.shape[streams - 1 : -1]
    rows = steps[0] * steps[1] if batch_sizes is None else steps[0]
    kept: tuple[Any, ...] = (rows, record)
    if checkpoint_every:
        count = steps[0] if batch_sizes is None else batch_sizes.shape[0]
        kept = (-(-count // checkpoint_every), outputs[1].shape[1], sum(widths))
    records = [x.new_empty((directions, *kept)) for _ in range(num_layers)]
    between = [x.new_empty((streams, rows, directions * widths[0])) for _ in range(num_layers - 1)]
    return [*outputs, *records, *between]


@torch.library.register_fake("rnnext::rnn_backward")
def _rnn_backward_fake(  # type: ignore[no-untyped-def]
    grads,
    y,
    saved,
    cell,
    x,
    h0,
    weights,
    batch_sizes,
    seed,
    num_layers,
    bidirectional,
    dropout,
    sizes,
    output_mask,
    samples=0,
    operand_dtype=None,
    checkpoint_every=0,
):
    _check_devices(x, (*grads, y, *saved, *h0, *weights), (batch_sizes, seed))
    lead = (samples,) if samples else ()
    inputs = [(x, x.shape), *((h, h.shape) for h in h0), *((w, (*lead, *w.shape)) for w in weights)]
    return [t.new_empty(s) for (t, s), wanted in zip(inputs, output_mask, strict=True) if wanted]


@torch.library.register_fake("rnnext::dropout_mask")
def _dropout_mask_fake(seed, rows, columns, place, p, *, dtype=torch.float32):  # type: ignore[no-untyped-def]
    return seed.new_empty((rows, columns), dtype=dtype)


def _check_devices(
    x: Tensor, beside: Iterable[Tensor | None], on_cpu: Iterable[Tensor | None]
) -> None:
    """One tensor on meta brings a call here, whose results would be on the device of x."""
    for tensors, device in ((beside, x.device), (on_cpu, torch.device("cpu"))):
        for tensor in tensors:
            is_noise = device != x.device and tensor is not None and tensor.is_floating_point()
            if tensor is not None and tensor.device != (x.device if is_noise else device):
                raise RuntimeError(
                    f"rnnext: an argument is on {tensor.device}, expected {device}: x is on "
                    f"{x.device}, and batch_sizes and seed must be on the CPU"
                )


def _batch_of(batch_sizes: Tensor, h0: Sequence[Tensor]) -> int | torch.SymInt:
    """N of a packed batch: a number of its own while batch_sizes has no data."""
    if h0:
        return h0[0].shape[1]
    if isinstance(batch_sizes, torch._subclasses.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])
