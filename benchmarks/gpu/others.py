"""LSTMs of other projects, where they are installed: FlashRNN and haste."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from grid import Job
from peers import Problem, Step
from torch import Tensor, nn
from torch.nn.functional import linear

NAMES = ("flashrnn", "haste")
Forward = Callable[[Tensor], tuple[Tensor, ...]]


def steps_of(job: Job, problem: Problem, mode: str) -> dict[str, Step]:
    """A step for each project that is there and has this layer; the results are torch.nn's first
    ones: y, h_n, c_n, and in training the gradient of the input.
    """
    one_padded = not job.shape.packed and job.shape.L == job.shape.D == 1
    if job.kind != "layer" or job.cell != "LSTM" or not one_padded or not problem.dy.is_cuda:
        return {}
    steps = {}
    if find_spec("flashrnn") and job.math != "tf32":
        steps["flashrnn"] = _step(problem, mode, *_flashrnn(problem))
    if find_spec("haste_pytorch") and job.math == "fp32":
        steps["haste"] = _step(problem, mode, *_haste(problem))
    return steps


def _step(problem: Problem, mode: str, forward: Forward, weights: list[Tensor]) -> Step:
    leaf = Problem._data(problem.x).detach().requires_grad_()
    if mode == "inference":
        return torch.no_grad()(lambda: forward(leaf))

    def training() -> tuple[Tensor, ...]:
        """Of the gradients of the weights, which are laid out in another way, none is returned."""
        outputs = forward(leaf)
        dx, *_ = torch.autograd.grad(outputs[0], [leaf, *weights], problem.dy)
        return (*outputs, dx)

    return training


def _flashrnn(problem: Problem) -> tuple[Forward, list[Tensor]]:
    """Poeppel, Beck and Hochreiter 2024. Wx [N, T, gates, heads, H], R [gates, heads, H, H]."""
    from flashrnn.flashrnn import flashrnn

    layer: nn.Module = problem.layers["torch"]
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    size, kind = w_hh.size(1), str(w_hh.dtype).removeprefix("torch.")

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        wx = linear(x.transpose(0, 1), w_ih, b_ih).unflatten(2, (4, 1, size))
        r, b = w_hh.view(4, 1, size, size), b_hh.view(4, 1, size)
        states, _ = flashrnn(wx, r, b, function="lstm", backend="cuda_fused", dtype=kind)
        h, c = states[0].squeeze(-2), states[1].squeeze(-2)  # [N, T, H]
        return h.transpose(0, 1), h[:, -1].unsqueeze(0), c[:, -1].unsqueeze(0)

    return forward, [w_ih, w_hh, b_ih, b_hh]


def _haste(problem: Problem) -> tuple[Forward, list[Tensor]]:
    """Gates i, g, f, o, matrices transposed, one bias."""
    import haste_pytorch

    layer: nn.Module = problem.layers["torch"]
    w_ih, w_hh, b_ih, b_hh = (w.detach() for w in layer.parameters())
    theirs = haste_pytorch.LSTM(w_ih.size(1), w_hh.size(1)).to(w_ih)

    def ordered(w: Tensor) -> Tensor:
        i, f, g, o = w.chunk(4)
        return torch.cat((i, g, f, o))

    with torch.no_grad():
        theirs.kernel.copy_(ordered(w_ih).T)
        theirs.recurrent_kernel.copy_(ordered(w_hh).T)
        theirs.bias.copy_(ordered(b_ih + b_hh))

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = theirs(x)
        return y, h, c

    return forward, [theirs.kernel, theirs.recurrent_kernel, theirs.bias]
