"""Derivatives that need more than the kernels' own backward: forward mode, and under it all of
torch.func; double backward reaches the same forward mode from csrc/autograd.cpp.

The forward-mode derivative of a cell is a cell too, of values and their tangents: the engine runs
it, and its backward is the cell's second derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnext import reference


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
    ones, and those of written cells where there is no compiler, are made in plain PyTorch.

    Args:
        cell, x, h0, weights, options: as `rnnext::rnn`.
        dx, dh0, dweights: tangents of x, h0 and weights, of their shapes.
    """
    build = import_module("rnnext.codegen.build")
    name = build.kernel(reference.CELLS[cell], streams=2) if cell in reference.CELLS else None
    if name is None:
        primals, tangents = (x, list(h0), list(weights)), (dx, list(dh0), list(dweights))
        return list(torch.func.jvp(_eager(cell, options), primals, tangents)[1])
    run = rnn if transforms_active() else torch.ops.rnnext.rnn
    y, *states = run(name, torch.stack([x, dx]), [*h0, *dh0], [*weights, *dweights], *options)
    return [y[1], *states[len(states) // 2 :]]


def _eager(cell: str, options: Sequence[Any]) -> Callable[..., list[Tensor]]:
    """`rnnext::rnn` of a cell, or of the jvp cell of one, as a function in plain PyTorch."""
    jvp_of = import_module("rnnext.codegen.build").TANGENTS.get(cell)
    function = functools.partial(
        _in_order, jvp_of or reference.CELLS[cell], dict(zip(_OPTIONS, options, strict=True))
    )
    if jvp_of is None:
        return function

    def dual(x: Tensor, h0: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        k, w = len(h0) // 2, len(weights) // 2
        primals = x[0], list(h0[:k]), list(weights[:w])
        tangents = x[1], list(h0[k:]), list(weights[w:])
        results = torch.func.jvp(function, primals, tangents)
        (y, *states), (dy, *dstates) = results[0], results[1]
        return [torch.stack([y, dy]), *states, *dstates]

    return dual


def _in_order(
    cell: Any, options: dict[str, Any], x: Tensor, h0: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    return reference.rnn(cell, x, h0, weights, **options)


_OPTIONS = ("batch_sizes", "seed", "num_layers", "bidirectional", "dropout", "sizes")

torch.library.impl("rnnext::rnn_jvp", "CompositeImplicitAutograd", rnn_jvp)


def transforms_active() -> bool:
    """Whether forward mode or a transform of torch.func is on."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def rnn(
    cell: str, x: Tensor, h0: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
) -> list[Tensor]:
    """`rnnext::rnn` where `transforms_active`: torch's own functions of C++ refuse them there."""
    call = _Call(cell, len(h0), options)
    return list(_Rnn.apply(call, x, *h0, *weights)[: call.outputs])


class _Call(NamedTuple):
    """A call of the op, but for its tensors x, *h0, *weights."""

    cell: str
    states: int
    options: tuple[Any, ...]

    @property
    def outputs(self) -> int:
        """y, and the final states."""
        sizes = self.options[-1]
        return 1 + len(torch.ops.rnnext.cell_shape(self.cell, [1] * (1 + len(sizes)))[3:])

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        end = 1 + self.states
        return tensors[0], list(tensors[1:end]), list(tensors[end:])

    def jvp(self, tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        """The tangents of the outputs: J v."""
        given = [
            torch.zeros_like(tensor) if tangent is None else tangent
            for tensor, tangent in zip(tensors, tangents, strict=True)
        ]
        split = *self.split(tensors), *self.split(given)
        return rnn_jvp(self.cell, *split, *self.options)

    def gradient_of_jvp(
        self,
        tensors: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """The gradients that reach the tensors from <grads, J v>."""

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            results = self.jvp(tensors, tangents)
            return tuple(r for r, g in zip(results, grads, strict=True) if g is not None)

        gradient = torch.func.vjp(run, *tensors)[1]
        return gradient(tuple(g for g in grads if g is not None))


def _primals(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Without the tangents of this level of forward mode: they are a rule's other argument."""
    return [None if t is None else forward_ad.unpack_dual(t).primal for t in tensors]


def _outer_levels() -> Any:
    """In a rule forward mode is off; that of levels further out goes on."""
    return forward_ad._set_fwd_grad_enabled(True)


class _Rnn(torch.autograd.Function):
    """`rnnext::rnn` with the rules that transforms need; also gives what backward reads."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.rnnext.rnn_train(call.cell, *call.split(tensors), *call.options))

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
        mask = ctx.needs_input_grad[1:]
        results = _RnnBackward.apply(
            *(ctx.call, mask, len(kept)), *kept, *grads[: ctx.call.outputs], *tensors
        )
        found = iter(results)
        return None, *(next(found) if wanted else None for wanted in mask)

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(
            "rnnext: vmap over the fused kernels is not implemented yet; let the dimension be part "
            "of the batch, or run rnnext.reference.rnn under vmap"
        )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with _outer_levels():
            results = ctx.call.jvp(_primals(ctx.saved_tensors), tangents)
        return *results, *[None] * (ctx.results - len(results))


class _RnnBackward(torch.autograd.Function):
    """`rnnext::rnn_backward`, the gradients J^T g that `mask` wants, for transforms.

    Its derivatives follow from those of J v: <v, J^T g> = <J v, g>, and the change of J^T g along v
    is the gradient of <g, J v>, as second derivatives are symmetric.
    """

    @staticmethod
    def forward(
        call: _Call, mask: tuple[bool, ...], kept: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        y, *saved = tensors[:kept]
        grads, inputs = tensors[kept : kept + call.outputs], tensors[kept + call.outputs :]
        split = call.split(inputs)
        return tuple(
            torch.ops.rnnext.rnn_backward(
                grads, y, saved, call.cell, *split, *call.options, list(mask)
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.mask, ctx.kept, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _split(ctx: Any) -> tuple[Any, Any, Any]:
        """What was kept, the output gradients, the inputs."""
        tensors, end = ctx.saved_tensors, ctx.kept + ctx.call.outputs
        return tensors[: ctx.kept], tensors[ctx.kept : end], tensors[end:]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        _, grads, inputs = _RnnBackward._split(ctx)
        found = iter(cotangents)
        v = [next(found) if wanted else None for wanted in ctx.mask]
        moved = ctx.call.jvp(inputs, v)
        to_grads = [None if g is None else m for m, g in zip(moved, grads, strict=True)]
        to_inputs = ctx.call.gradient_of_jvp(inputs, v, grads)
        return None, None, None, *[None] * ctx.kept, *to_grads, *to_inputs

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        kept, grads, inputs = map(_primals, _RnnBackward._split(ctx))
        end = 3 + ctx.kept + ctx.call.outputs
        of_grads, of_inputs = tangents[3 + ctx.kept : end], tangents[end:]
        with _outer_levels():
            moved = ctx.call.gradient_of_jvp(inputs, of_inputs, grads)
            changes = [m for m, wanted in zip(moved, ctx.mask, strict=True) if wanted]
            if any(g is not None for g in of_grads):
                more = _RnnBackward.apply(ctx.call, ctx.mask, ctx.kept, *kept, *of_grads, *inputs)
                changes = [a + b for a, b in zip(changes, more, strict=True)]
        return tuple(changes)
