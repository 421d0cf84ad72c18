"""What is on the wrong device, or wrong otherwise, is refused in words, and breaks nothing."""

import pytest
import torch
from cases import Case, Data
from on_device import DEVICE
from test_autograd import wrong

import rnnext
from rnnext import ops

cuda_only = pytest.mark.cuda_only
CASE = Case(T=3, N=2, C=5, H=7, L=2)


@cuda_only
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_modules_name_the_devices_that_differ(name: str) -> None:
    module = getattr(rnnext, name)(5, 7, device=DEVICE)
    batch = (2,) if "Cell" in name else (3, 2)
    x = torch.randn(*batch, 5)
    with pytest.raises(RuntimeError, match=r"not at the same device, found input tensor at cpu"):
        module(x)
    with pytest.raises(RuntimeError, match=r"not at the same device, found input tensor at cuda"):
        module.cpu()(x.to(DEVICE))
    states = torch.randn(*((2, 7) if "Cell" in name else (1, 2, 7)))
    hx = (states, states) if "LSTM" in name else states
    with pytest.raises(RuntimeError, match=r"not at the same device, .* hidden tensor at cpu"):
        module.to(DEVICE)(x.to(DEVICE), hx)


@cuda_only
@pytest.mark.parametrize("what", ["x", "h0", "weights", "seed", "batch_sizes"])
def test_the_op_refuses_a_tensor_that_is_elsewhere(what: str) -> None:
    case = Case(T=3, N=2, C=5, H=7, L=2, lengths=(3, 2), dropout=0.5)
    data = Data("LSTM", case, device=DEVICE)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    options = {**data.options}
    if what == "x":
        x = x.cpu()
    elif what == "h0":
        h0[1] = h0[1].cpu()
    elif what == "weights":
        weights[5] = weights[5].cpu()
    else:
        options[what] = options[what].to(DEVICE)
    for op in (torch.ops.rnnext.rnn, torch.ops.rnnext.rnn_train):
        with pytest.raises(RuntimeError, match=r"cpu|CPU|cuda|CUDA"):
            op("LSTM", x, h0, weights, *options.values())


@cuda_only
def test_backward_refuses_a_tensor_that_is_elsewhere() -> None:
    data = Data("GRU", CASE, device=DEVICE)
    x, h0, weights = data.split([t.detach() for t in data.inputs(torch.float32)])
    arguments = ("GRU", x, h0, weights, *data.positional_options)
    y, *rest = torch.ops.rnnext.rnn_train(*arguments)
    saved, grads = rest[len(data.grads) - 1 :], data.output_grads(torch.float32)
    mask = [True] * (1 + len(h0) + len(weights))
    for bad_grads, bad_y, bad_saved in (
        ([grads[0].cpu(), *grads[1:]], y, saved),
        (grads, y.cpu(), saved),
        (grads, y, [saved[0].cpu(), *saved[1:]]),
    ):
        with pytest.raises(RuntimeError, match=r"cpu|CPU|cuda|CUDA"):
            torch.ops.rnnext.rnn_backward(bad_grads, bad_y, bad_saved, *arguments, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cell", "no cell is called 'LSTN'"),
        ("no steps", "Expected sequence length to be larger than 0 in RNN"),
        ("two dimensions", r"x has 2 dimensions, expected 3"),
        ("columns of x", r"W_ih has shape \[28, 4\], expected \[28, 6\]"),
        ("dtype of a weight", "a weight is Float but x is Double"),
        ("shape of a weight", r"W_hh has shape \[27, 7\], expected \[28, 7\]"),
        ("number of weights", r"7 weights given, expected 4 \(without bias\) or 8"),
        ("number of states", "1 initial states given, but LSTM has 2"),
        ("shape of a state", r"an initial state has shape \[1, 3, 7\], expected \[2, 3, 7\]"),
        ("dropout", "dropout is 1.5, expected a probability"),
        ("batch_sizes grow", r"batch_sizes\[1\] is 2 after 1"),
        ("batch_sizes sum", "packed x has 5 rows, but batch_sizes add up to 6"),
    ],
)
def test_bad_arguments_are_named_as_on_the_cpu(change: str, message: str) -> None:
    cell, x, h0, weights, options = wrong(change)
    x, h0, weights = x.to(DEVICE), [h.to(DEVICE) for h in h0], [w.to(DEVICE) for w in weights]
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.rnn(cell, x, h0, weights, **options)


def test_the_device_works_after_errors() -> None:
    data = Data("LSTM", CASE, device=DEVICE)
    assert all(t.isfinite().all() for t in data.run(ops.rnn, torch.float32).values())
