"""How the kernels would go about a call: the planners of the CPU and of CUDA, in words."""

from __future__ import annotations

import torch

from rnnext import ops
from rnnext.module_base import Layer
from rnnext.packing import Lengths, as_tensor
from rnnext.recurrent import Recurrent


def plan(
    layer: Layer | Recurrent,
    T: int,
    N: int,
    lengths: Lengths | None = None,
    threads: int | None = None,
) -> str:
    """Tell how a call of a layer, without initial states, would be done; nothing is run.

    On the CPU, in a line: the threads that work, and how they share the work, **by rows** (each
    takes some sequences through all steps) or **by units** (each takes some units of every
    sequence, and they meet at each step); in brackets why:

    - alone: one thread is all there is
    - small: too little work in all for several
    - many: sequences enough for each thread, weights that stay in its caches
    - few: so few sequences that reading the weights takes the time
    - large: weights that leave the caches between two steps
    - meetings: few sequences or large weights, but too little work in a step to meet at each

    and, by rows, whether each thread is **on its own**: it does all that its sequences need, and
    the team meets when all is done, to add up the gradients of the weights; or **but for dW**,
    these gradients, for which it meets at each time block; else it also meets for products with the
    input of a block, which are shared out over the rows of all;
    or that scans go **side by side**, each on one thread: the two directions of a bidirectional
    layer, or the layers of a stack, each a time block behind the one below;
    then the sequences, longest first, or units of each thread; whether the weights are read in
    place or packed for the call, in bfloat16 perhaps (of a bfloat16 layer, or under autocast, where
    the processor multiplies it); and the steps in a time block, whose input is projected at once.

    On CUDA: whether the steps of a block run **in one launch**, the weights staying on the chip,
    and in how many slices of units and groups of sequences, or **step by step**, and why; and how
    many cycles of the chip's clock a step is expected to take, by which the planner chose.
    RNNEXT_CUDA_PATH=steps, grid (one launch, slices from all over the chip that exchange through
    memory), cluster (that exchange by shared memory) or persistent (one of these two) forces one.

    Args:
        layer: a layer of rnnext, with its parameters on the CPU or a CUDA device.
        T: steps.
        N: sequences.
        lengths: of each sequence, [N] integers in 1..T, in any order; None: all have T steps.
        threads: to share the work on the CPU; None: torch's.

    Returns:
        For each layer of the stack a line of its forward and one of its backward, the same for
        both directions of a bidirectional one.

    Raises:
        TypeError: layer is not one of rnnext's, or lengths are not integers.
        ValueError: no kernels would run (another device or dtype, no compiler for a written cell);
            lengths that are not [N] or out of range; threads on CUDA.
        RuntimeError: T, N or threads below 1 or too large; RNNEXT_CUDA_PATH asks for what can't be.

    Example:
        >>> print(plan(rnnext.GRU(8, 8), T=1, N=1, threads=2))
        layer 0, forward: 1 thread (small); W_ih in place, W_hh in place; time blocks of 1 step
        layer 0, backward: 1 thread (small); W_ih in place, W_hh in place; time blocks of 1 step
    """
    name, sizes, heads = _kernel(layer)
    weight = getattr(layer, layer._names()[0])
    rounded = ops._rounded_dtype(weight)
    dtype = weight.dtype if rounded is None else torch.float32
    device = weight.device.type
    known = device in ("cpu", "cuda") and dtype in (torch.float32, torch.float64)
    if not (known and ops.has_kernel(name, device, dtype)):
        raise ValueError(
            f"the plan is that of the kernels, but they do not run {weight.dtype} on "
            f"{weight.device}: move the layer with .to('cpu', torch.float32)"
        )
    if weight.is_cuda and threads is not None:
        raise ValueError(f"threads is {threads}, but on {weight.device} there are none to choose")
    batch_sizes = None
    if lengths is not None:
        batch_sizes = torch.ops.rnnext.packing(as_tensor(lengths), N, T, False)[0]
    lines = []
    width = next(iter(layer._states().values()))
    for k in range(layer.num_layers):
        inputs = layer.input_size if k == 0 else width * (2 if layer.bidirectional else 1)
        call = name, T, N, inputs, [layer.hidden_size, *sizes], heads, batch_sizes
        if weight.is_cuda:
            computed = weight.new_empty(0, dtype=dtype)
            text = torch.ops.rnnext.plan_cuda(call[0], computed, *call[1:], operand_dtype=rounded)
        else:
            text = torch.ops.rnnext.plan(
                *call,
                dtype=dtype,
                operand_dtype=rounded,
                threads=threads,
                bidirectional=layer.bidirectional,
                num_layers=layer.num_layers,
                checkpoints=bool(layer.checkpoint_every),
                at_zero=True,
            )
        lines += [f"layer {k}, {line}" for line in text.splitlines()]
    return "\n".join(lines)


def _kernel(layer: Layer | Recurrent) -> tuple[str, list[int], int]:
    """The cell's name in the op, its sizes besides the hidden one, and the blocks of W_hh."""
    if isinstance(layer, Recurrent):
        name = layer._cell_name()
        if name is None:
            raise ValueError(
                f"{type(layer).__name__} has no kernel here, as there is no compiler: the "
                "reference runs it, which has no plan"
            )
        return name, layer._sizes(), layer.heads
    if isinstance(layer, Layer):
        return ("LSTM_PROJ", [layer.proj_size], 1) if layer.proj_size else (layer.mode, [], 1)
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    raise TypeError(
        f"layer is a {kind}, expected a layer of rnnext: LSTM, GRU, RNN or a Recurrent; "
        "rnnext.swap makes one of a layer of torch.nn"
    )
