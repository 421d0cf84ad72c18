"""Derivatives that need more than the kernels' own backward: forward mode, and under it all of
torch.func; double backward reaches the same forward mode from csrc/autograd.cpp.

The forward-mode derivative of a cell is a cell too, of values and their tangents: the engine runs
it, and its backward is the cell's second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnext import reference, samples
from rnnext.cell import STATES, split_name


def rnn_jvp(
    cell: str,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    dx: Tensor,
    dh0: Sequence[Tensor],
    dweights: Sequence[Tensor],
    *options: Any,
) -> list[Tensor]:
    """The op `rnnext::rnn_jvp`: tangents of the outputs of `rnnext::rnn`, differentiable.

    The engine has the derivatives of a cell and their gradients, so up to the second order; higher
    ones, and those where there is no compiler (for a GPU, no nvcc), are made in plain PyTorch.

    Args:
        cell, x, h0, weights, options: as `rnnext::rnn`.
        dx, dh0, dweights: tangents of x, h0 and weights, of their shapes.
    """
    build = import_module("rnnext.codegen.build")
    base, sequences = split_name(cell)
    known = reference.CELLS.get(base)
    name = build.kernel(known, streams=2) if known else None
    if name is not None and x.is_cuda and not import_module("rnnext.codegen.cuda").runs(name):
        name = None
    if known is None or name is None:
        primals, tangents = (x, list(h0), list(weights)), (dx, list(dh0), list(dweights))
        return list(torch.func.jvp(_eager(cell, options), primals, tangents)[1])
    run = rnn if transforms_active() else torch.ops.rnnext.rnn
    name = name + STATES if sequences else name
    y, *states = run(name, torch.stack([x, dx]), [*h0, *dh0], [*weights, *dweights], *options)
    count = len(known.states)
    others = 2 * (count - 1) if sequences else 0
    return [y[1], *states[count : 2 * count], *states[2 * count :][others // 2 : others]]


def _eager(cell: str, options: Sequence[Any]) -> Callable[..., list[Tensor]]:
    """`rnnext::rnn` of a cell, or of the jvp cell of one, as a function in plain PyTorch."""
    cell, sequences = split_name(cell)
    jvp_of = import_module("rnnext.codegen.build").TANGENTS.get(cell)
    if jvp_of is None and cell not in reference.CELLS:
        raise RuntimeError(
            f"rnnext: derivatives of {cell} beyond its backward need the class that it was written "
            "in: import it, and make a layer of it, in this process"
        )
    known: dict[str, Any] = dict(zip(_OPTIONS, options[: len(_OPTIONS)], strict=True))
    known["sequences"] = sequences
    function = partial(_in_order, jvp_of or reference.CELLS[cell], known)
    if jvp_of is None:
        return function

    def dual(x: Tensor, h0: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        k, w = len(h0) // 2, len(weights) // 2
        primals = x[0], list(h0[:k]), list(weights[:w])
        tangents = x[1], list(h0[k:]), list(weights[w:])
        results = torch.func.jvp(function, primals, tangents)
        (y, *states), (dy, *dstates) = results[0], results[1]
        c = len(jvp_of.states)
        return [torch.stack([y, dy]), *states[:c], *dstates[:c], *states[c:], *dstates[c:]]

    return dual


def _in_order(
    cell: Any, options: dict[str, Any], x: Tensor, h0: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    return reference.rnn(cell, x, h0, weights, **options)


# Of those of the op; plain PyTorch rounds no operands, and no checkpoints.
_OPTIONS = ("batch_sizes", "seed", "num_layers", "bidirectional", "dropout", "sizes")

torch.library.impl("rnnext::rnn_jvp", "CompositeImplicitAutograd", rnn_jvp)


def transforms_active() -> bool:
    """Whether forward mode or a transform of torch.func is on."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def rnn(
    cell: str,
    x: Tensor,
    h0: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    """`rnnext::rnn` where `transforms_active`: torch's own functions of C++ refuse them there."""
    call = Call(cell, len(h0), options)
    results = Rnn.apply(call, batch_sizes, seed, x, *h0, *weights)
    return list(results[: call.outputs + call.sums])


@dataclass(frozen=True)
class Call:
    """A call of the op, but for its tensors, which are batch_sizes, seed, x, *h0, *weights.

    Attributes:
        cell: its name.
        states: how many initial states there are.
        options: the op's arguments after the tensors: num_layers, bidirectional, dropout, sizes,
            operand_dtype, checkpoint_every.
    """

    cell: str
    states: int
    options: tuple[Any, ...]

    @property
    def outputs(self) -> int:
        """y, the final states, and the sequences that are wanted: what has gradients."""
        _, _, streams, _, *states = self._shape
        others = len(states) - streams if split_name(self.cell)[1] else 0
        return 1 + len(states) + others

    @property
    def sums(self) -> int:
        """1 if the cell's sums over sequences come after these, else 0."""
        return int(self._shape[3] > 0)

    @property
    def _shape(self) -> list[int]:
        sizes = self.options[3]
        return list(torch.ops.rnnext.cell_shape(self.cell, [1] * (1 + len(sizes))))

    @property
    def weights(self) -> int:
        """Where the weights begin among the tensors."""
        return 3 + self.states

    def arguments(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """All that the op takes."""
        return self.cell, *self._split(tensors[2:]), *tensors[:2], *self.options

    def jvp(self, tensors: Sequence[Any], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        """The tangents of the outputs, J v, where those of x, h0 and weights are v."""
        v = _or_zeros(tangents, tensors[2:])
        split = *self._split(tensors[2:]), *self._split(v)
        return rnn_jvp(self.cell, *split, *tensors[:2], *self.options)

    def gradient_of_jvp(
        self,
        tensors: Sequence[Any],
        tangents: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """The gradients that reach x, h0 and weights from <grads, J v>."""

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.jvp((*tensors[:2], *inputs), tangents))

        return _gradients(run, tensors[2:], grads)

    def is_one_batch(self, tensors: Sequence[Any], dims: samples.Dims) -> bool:
        """Whether samples along `dims` can run as one batch: they have the same weights, no random
        numbers, which depend on the place in the batch, and no sums over it.
        """
        same = (dims[0], *dims[self.weights :])
        return tensors[1] is None and not self.sums and all(dim is None for dim in same)

    def as_one_batch(
        self, tensors: Sequence[Any], dims: samples.Dims, count: int
    ) -> list[Tensor | None]:
        w = self.weights
        batch_sizes = None if tensors[0] is None else tensors[0] * count
        return [batch_sizes, None, *samples.join(tensors[2:w], dims[2:w], count), *tensors[w:]]

    def _split(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        end = 1 + self.states
        return inputs[0], list(inputs[1:end]), list(inputs[end:])


class Rnn(torch.autograd.Function):
    """`rnnext::rnn` with the rules that transforms need; also gives what backward reads."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(torch.ops.rnnext.rnn_train(*call.arguments(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.inputs, ctx.results = len(tensors), len(output)
        kept = output[ctx.call.outputs :]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[0], *kept)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        tensors, kept = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        this = Backward(ctx.call, len(kept), ctx.needs_input_grad[3:])
        found = iter(RnnBackward.apply(this, *kept, *grads[: ctx.call.outputs], *tensors))
        return None, None, None, *(next(found) if wanted else None for wanted in this.mask)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with _outer_levels():
            results = ctx.call.jvp(_primals(ctx.saved_tensors), tangents[3:])
        return *results, *[None] * (ctx.results - len(results))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None
    ) -> tuple[Any, Any]:
        dims, count = in_dims[1:], info.batch_size
        if not call.is_one_batch(tensors, dims):
            return samples.one_by_one(partial(Rnn.apply, call), tensors, dims, count)
        results = Rnn.apply(call, *call.as_one_batch(tensors, dims, count))
        return samples.separate(results, count)


@dataclass(frozen=True)
class Backward:
    """A call of `rnnext::rnn_backward`, but for its tensors: what was kept (y and `saved`), the
    output gradients, and those of the call that it is the backward of.

    Attributes:
        call: that one.
        kept: how many tensors were kept.
        mask, samples: as the op takes them.
    """

    call: Call
    kept: int
    mask: tuple[bool, ...]
    samples: int = 0

    @property
    def of_call(self) -> int:
        """Where the call's tensors begin."""
        return self.kept + self.call.outputs

    @property
    def of_rows(self) -> int:
        """How many results are of x and h0; those of weights come after them."""
        return sum(self.mask[: 1 + self.call.states])

    def split(self, tensors: Sequence[Any]) -> tuple[Any, Any, Any]:
        """What was kept, the output gradients, the call's tensors."""
        return tensors[: self.kept], tensors[self.kept : self.of_call], tensors[self.of_call :]

    def run(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        (y, *saved), grads, inputs = self.split(tensors)
        *call, operand_dtype, checkpoint_every = self.call.arguments(inputs)
        options = list(self.mask), self.samples, operand_dtype, checkpoint_every
        return tuple(torch.ops.rnnext.rnn_backward(grads, y, saved, *call, *options))

    def run_sample_by_sample(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The same, in a way that can be differentiated."""
        begin, end = self.of_call, self.of_call + self.call.weights
        batch_sizes, count = tensors[begin], self.samples
        single = None if batch_sizes is None else batch_sizes // count
        found = []
        for k in range(count):
            kept_and_grads = samples.select(tensors[:begin], k, count)
            inputs = single, None, *samples.select(tensors[begin + 2 : end], k, count)
            one = (*kept_and_grads, *inputs, *tensors[end:])
            found.append(RnnBackward.apply(replace(self, samples=0), *one))
        parts = [torch.stack(part) for part in zip(*found, strict=True)]
        rows = samples.join(parts[: self.of_rows], [0] * self.of_rows, count)
        return *rows, *parts[self.of_rows :]

    def of_floats(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[Callable[..., tuple[Tensor, ...]], dict[int, Tensor]]:
        """`run_sample_by_sample` as a function of the floating tensors alone; these by place."""
        floats = {k: t for k, t in enumerate(tensors) if t is not None and t.is_floating_point()}

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            changed = dict(zip(floats, values, strict=True))
            return self.run_sample_by_sample(*(changed.get(k, t) for k, t in enumerate(tensors)))

        return run, floats


class RnnBackward(torch.autograd.Function):
    """`rnnext::rnn_backward`, the gradients J^T g that `mask` wants, for transforms.

    Its derivatives follow from those of J v: <v, J^T g> = <J v, g>, and the change of J^T g along v
    is the gradient of <g, J v>, as second derivatives are symmetric.
    """

    @staticmethod
    def forward(this: Backward, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return this.run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.this, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        this, tensors = ctx.this, ctx.saved_tensors
        if this.samples:
            run, floats = this.of_floats(tensors)
            found = _gradients(run, list(floats.values()), cotangents)
            moved = dict(zip(floats, found, strict=True))
            return None, *map(moved.get, range(len(tensors)))
        _, grads, inputs = this.split(tensors)
        given = iter(cotangents)
        v = [next(given) if wanted else None for wanted in this.mask]
        moved = this.call.jvp(inputs, v)
        to_grads = [None if g is None else m for m, g in zip(moved, grads, strict=True)]
        to_inputs = this.call.gradient_of_jvp(inputs, v, grads)
        return None, *[None] * this.kept, *to_grads, None, None, *to_inputs

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor, ...]:
        this, tensors = ctx.this, _primals(ctx.saved_tensors)
        with _outer_levels():
            if this.samples:
                run, floats = this.of_floats(tensors)
                v = _or_zeros([tangents[k] for k in floats], list(floats.values()))
                return torch.func.jvp(run, tuple(floats.values()), tuple(v))[1]
            kept, grads, inputs = this.split(tensors)
            _, of_grads, of_inputs = this.split(tangents)
            moved = this.call.gradient_of_jvp(inputs, of_inputs[2:], grads)
            changes = [m for m, wanted in zip(moved, this.mask, strict=True) if wanted]
            if any(g is not None for g in of_grads):
                more = RnnBackward.apply(this, *kept, *of_grads, *inputs)
                changes = [a + b for a, b in zip(changes, more, strict=True)]
        return tuple(changes)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], this: Backward, *tensors: Tensor | None
    ) -> tuple[Any, Any]:
        dims, count, begin, rows = in_dims[1:], info.batch_size, this.of_call, this.of_rows
        if not this.call.is_one_batch(tensors[begin:], dims[begin:]):
            return samples.one_by_one(partial(RnnBackward.apply, this), tensors, dims, count)
        joined = samples.join(tensors[:begin], dims[:begin], count)
        inputs = this.call.as_one_batch(tensors[begin:], dims[begin:], count)
        wants_weights = sum(this.mask) > rows
        more = replace(this, samples=max(this.samples, 1) * count if wants_weights else 0)
        results = RnnBackward.apply(more, *joined, *inputs)
        parts, places = samples.separate(results[:rows], count)
        weights = results[rows:]
        if this.samples:
            weights = tuple(w.unflatten(0, (this.samples, count)) for w in weights)
        return (*parts, *weights), (*places, *[int(this.samples > 0)] * len(weights))


def _primals(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Without the tangents of this level of forward mode: they are a rule's other argument."""
    return [None if t is None else forward_ad.unpack_dual(t).primal for t in tensors]


def _outer_levels() -> Any:
    """In a rule forward mode is off; that of levels further out goes on."""
    return forward_ad._set_fwd_grad_enabled(True)


def _or_zeros(values: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(values, like, strict=True)
    return [torch.zeros_like(other) if value is None else value for value, other in pairs]


def _gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """What torch.func.vjp gives, but while its level lasts: afterwards torch can unwrap the tensors
    of one such level, and not of one in another.
    """

    def total(*inputs: Tensor) -> Tensor:
        pairs = zip(function(*inputs), grads, strict=True)
        return torch.stack([(r * g).sum() for r, g in pairs if g is not None]).sum()

    return torch.func.grad(total, tuple(range(len(inputs))))(*inputs)
