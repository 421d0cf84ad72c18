"""What is said of a Recurrent layer's wrong arguments: nn's words where nn has the argument too."""

from typing import Any

import pytest
import torch
from test_recurrent import C, H, LightGRU, N, Peephole, T, make
from torch import nn


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.5, "num_layers": 2},
        {"dropout": True},
        {"dropout": "0.5"},
        {"num_layers": 0},
        {"bias": 1},
        {"batch_first": None},
        {"hidden_size": 0},
        {"hidden_size": 2.0},
        {"input_size": 0},
        {"input_size": "3"},
    ],
    ids=str,
)
def test_constructor_errors_are_nns(options: dict[str, Any]) -> None:
    caught = []
    for kind in (nn.GRU, LightGRU):
        with pytest.raises((TypeError, ValueError)) as info:
            kind(**{"input_size": C, "hidden_size": H, **options})
        caught.append(info.value)
    if options != {"dropout": "0.5"}:  # nn fails before it says what it expects
        assert type(caught[1]) is type(caught[0])
        assert str(caught[1]) == str(caught[0])


def test_other_constructor_errors_and_the_warning() -> None:
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        LightGRU(C, H, dropout=0.5)
    assert caught[0].filename == __file__
    for error, message, options in (
        (TypeError, r"Peephole\(\) needs the keyword argument 'proj_size', a size", {}),
        (ValueError, "proj_size must be greater than zero", {"proj_size": 0}),
        (TypeError, "proj_size should be of type int, got: float", {"proj_size": 2.0}),
        (
            TypeError,
            r"unexpected keyword argument 'layers'; its cell's own \(.*\) are: proj_size, bound",
            {"proj_size": 2, "layers": 2},
        ),
        (
            TypeError,
            "Peephole: got bound='1', expected a float as its default, 1.0",
            {"proj_size": 2, "bound": "1"},
        ),
        (TypeError, "heads should be of type int", {"proj_size": 2, "heads": 1.0}),
        (ValueError, "heads must be greater than zero", {"proj_size": 2, "heads": 0}),
        (TypeError, "num_layers should be of type int", {"proj_size": 2, "num_layers": 1.0}),
    ):
        with pytest.raises(error, match=message):
            Peephole(C, H, **options)


def test_errors_of_a_call() -> None:
    light, peephole = make(LightGRU), make(Peephole, proj_size=2)
    x = torch.zeros(T, N, C, dtype=torch.float64)
    h, c = (torch.zeros(1, N, width, dtype=torch.float64) for width in (2, H))
    for layer, error, message, args in (
        (light, ValueError, "LightGRU: Expected input to be 2D or 3D, got 4D instead", (x[None],)),
        (light, RuntimeError, "must be equal to input_size. Expected 3, got 2", (x[..., :2],)),
        (light, TypeError, "must be a Tensor, the state h, not tuple", (x, (c,))),
        (light, RuntimeError, r"Expected hidden size \(1, 4, 6\), got \[1, 4, 2\]", (x, h)),
        (light, RuntimeError, "batched 3-D input, hx should also be 3-D but got 2-D", (x, c[0])),
        (peephole, TypeError, r"a tuple of 2 Tensors \(h, c\), not Tensor", (x, h)),
        (peephole, TypeError, r"a tuple of 2 Tensors \(h, c\), not list", (x, [h, 0])),
        (peephole, RuntimeError, r"a tuple of 2 Tensors \(h, c\), but got 1", (x, (h,))),
        (peephole, RuntimeError, r"hidden\[1\] size \(1, 4, 6\), got \[1, 4, 2\]", (x, (h, h))),
        (peephole, RuntimeError, r"hidden\[0\] size \(1, 4, 2\), got \[1, 4, 6\]", (x, (c, c))),
        (
            peephole,
            RuntimeError,
            r"h and c should also be 3-D but got \(2-D, 3-D\)",
            (x, (h[0], c)),
        ),
        (light, RuntimeError, "not the same dtype", (x, c.float())),
        (light, RuntimeError, "xpected sequence length to be larger than 0", (x[:0],)),
    ):
        with pytest.raises(error, match=message):
            layer(*args)
    with pytest.raises(ValueError, match=r"in 1..5 \(T\), but lengths\[1\] is 0"):
        light(x, lengths=[1, 0, 1, 1])
    empty = light(x[:, :0])
    assert [t.shape for t in empty] == [(T, 0, H), (1, 0, H)]
