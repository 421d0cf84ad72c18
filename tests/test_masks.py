"""`masks=`: noise that a call is given instead of drawing it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnext
from rnnext import cells, ops, reference
from rnnext.noise import noise_values

T, N, C, H = 6, 4, 3, 5
LENGTHS = [2, 6, 1, 4]
CONFIGS: dict[str, Any] = {
    "LSTM": {"zoneout_h": 0.2, "zoneout_c": 0.4, "recurrent_dropout": 0.25},
    "GRU": {"zoneout_h": 0.3, "recurrent_dropout": 0.25},
    "LayerNormLSTM": {"zoneout_c": 0.4},
    "VariationalLSTM": {"variational_dropout": 0.25},
}


class Several(cells.LSTM):
    """Noise of both kinds and of two widths."""

    noise = {  # noqa: RUF012
        **cells.LSTM.noise,
        "drop": rnnext.Dropout("recurrent_dropout", per="sequence"),
        "keep_h": rnnext.Bernoulli("zoneout_h", size=1),
    }


def layer_of(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    kind = Several if name == "Several" else getattr(cells, name)
    options = CONFIGS["LSTM" if name == "Several" else name]
    return kind(C, H, 2, bidirectional=True, dtype=torch.float64, **options, **more)


def drawn(rnn: Any, rows: int, sequences: int, seed: Tensor) -> dict[str, Tensor]:
    """What the layer draws by a seed: [L*D, rows or sequences, width]."""
    found = {}
    for number, (name, noise) in enumerate(rnn.declaration.noise.items()):
        width, count = rnn._noise()[name][1], rows if noise.per == "step" else sequences
        like = torch.empty(0, dtype=torch.float64)
        each = [noise_values(noise, number, seed, k, count, width, like) for k in range(4)]
        found[name] = torch.stack([one.expand(count, width) for one in each])
    return found


def results(rnn: Any, x: Any, **options: Any) -> list[Tensor]:
    """y, final states, and the gradients of the weights."""
    torch.manual_seed(7)
    y, states = rnn(x, **options)
    y = y.data if isinstance(y, PackedSequence) else y
    outputs = [y, *((states,) if isinstance(states, Tensor) else states)]
    total = sum((o * (1 + torch.arange(o.numel()).view(o.shape).sin())).sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(total, list(rnn.parameters()))]


def seed_of_7() -> Tensor:
    torch.manual_seed(7)
    return torch.randint(2**63 - 1, (1,))


@pytest.mark.parametrize("name", [*CONFIGS, "Several"])
@pytest.mark.parametrize("form", ["padded", "batch first", "lengths", "packed"])
def test_the_masks_that_would_be_drawn_change_no_bit(name: str, form: str) -> None:
    rnn = layer_of(name, batch_first=form == "batch first")
    x = torch.randn(T, N, C, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    given: Any = packed if form == "packed" else x.transpose(0, 1) if rnn.batch_first else x
    options = {"lengths": LENGTHS} if form == "lengths" else {}
    rows = len(packed.data) if form == "packed" else T * N
    masks = drawn(rnn, rows, N, seed_of_7())
    noise = rnn.declaration.noise
    if form in ("lengths", "packed"):
        ends = torch.tensor(LENGTHS)
        _, _, inverse, _, back = torch.ops.rnnext.packing(ends, N, T, False)
    for key, mask in masks.items():
        if noise[key].per == "sequence":
            masks[key] = mask[:, inverse] if form in ("lengths", "packed") else mask
        elif form == "lengths":
            masks[key] = mask[:, back].unflatten(1, (T, N))
        elif form != "packed":
            masks[key] = mask.unflatten(1, (T, N))
            masks[key] = masks[key].transpose(1, 2) if rnn.batch_first else masks[key]
    expected = results(rnn, given, **options)
    for a, b in zip(results(rnn, given, masks=masks, **options), expected, strict=True):
        assert torch.equal(a, b)


def test_unbatched_and_cut_sequences_take_those_of_their_rows() -> None:
    rnn = layer_of("Several")
    x = torch.randn(T, N, C, dtype=torch.float64)
    masks = drawn(rnn, T * N, N, seed_of_7())
    masks = {k: m if m.size(1) == N else m.unflatten(1, (T, N)) for k, m in masks.items()}
    whole = rnn(x, masks=masks)[0]
    row = rnn(x[:, 1], masks={k: m[..., 1, :] for k, m in masks.items()})[0]
    torch.testing.assert_close(row, whole[:, 1], rtol=1e-12, atol=1e-12)

    reset = torch.zeros(T, N, dtype=torch.bool)
    reset[4, 1] = True
    y = rnn(x, reset=reset, masks=masks)[0]
    torch.testing.assert_close(y[:, 0], whole[:, 0], rtol=1e-12, atol=1e-12)
    of_row = {k: m[:, 1:2] if m.dim() == 3 else m[:, 4:, 1:2] for k, m in masks.items()}
    after = rnn(x[4:, 1:2], masks=of_row)[0]
    torch.testing.assert_close(y[4:, 1:2], after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["LSTM", "Several"])
def test_the_reference_takes_them_too(name: str) -> None:
    rnn = layer_of(name)
    x = torch.randn(T, N, C, dtype=torch.float64)
    widths = sum(width for _, width in rnn._noise().values())
    noise = torch.rand(4, T * N, widths, dtype=torch.float64)
    options = {"num_layers": 2, "bidirectional": True, "seed": noise}
    ours = ops.rnn(rnn._cell_name(), x, [], list(rnn.parameters()), **options)
    plain = reference.rnn(rnn.declaration, x, [], list(rnn.parameters()), **options)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_they_hold_in_eval_mode_for_half_precision_and_derivatives() -> None:
    rnn = layer_of("LSTM").eval()
    x = torch.randn(T, N, C, dtype=torch.float64, requires_grad=True)
    ones = {k: torch.ones(4, T, N, H, dtype=torch.float64) for k in rnn.declaration.noise}
    y, (h_n, c_n) = rnn(x, masks=ones)  # everything is kept
    for value in (y, h_n, c_n):
        assert (value == 0).all()
    masks = {k: torch.rand(4, T, N, H, dtype=torch.float64) for k in ones}
    assert torch.autograd.gradcheck(lambda x: rnn(x, masks=masks)[0], x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x, masks=masks)[0], x)
    short = rnn.to(torch.bfloat16)(x.bfloat16(), masks=masks)[0]
    assert (short.double() - rnn.double()(x, masks=masks)[0]).abs().max() < 0.02


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_mask_of_the_recurrent_weights(name: str) -> None:
    torch.manual_seed(0)
    rnn = getattr(rnnext, name)(C, H, 2, bidirectional=True)
    x = torch.randn(T, N, C)
    mask = torch.rand(4, *rnn.weight_hh_l0.shape)
    y, _ = rnn(x, masks={"weight_hh": mask})
    other = getattr(rnnext, name)(C, H, 2, bidirectional=True)
    other.load_state_dict(rnn.state_dict())
    names = [n for n, _ in other.named_parameters() if n.startswith("weight_hh")]
    for n, m in zip(names, mask, strict=True):
        other.get_parameter(n).data.mul_(m)
    assert torch.equal(y, other(x)[0])

    cells.drop_connect(rnn, 0.5)
    torch.manual_seed(7)
    seed, w = torch.randint(2**63 - 1, (1,)), rnn.weight_hh_l0.detach()
    kept = [noise_values(rnnext.Dropout(0.5), 8, seed, k, *w.shape, w) for k in range(4)]
    expected = results(rnn, x)
    for a, b in zip(results(rnn, x, masks={"weight_hh": torch.stack(kept)}), expected, strict=True):
        assert torch.equal(a, b)


STEP = torch.ones(1, T, N, H)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"keep": STEP}, ValueError, "masks has 'keep', but LSTM draws keep_h, keep_c, weight_hh"),
        ({"keep_h": STEP}, ValueError, "masks has keep_h, but LSTM draws keep_c too"),
        ({"keep_h": [1.0]}, TypeError, r"masks\['keep_h'\] must be a Tensor, but got list"),
        ({"keep_h": STEP[0]}, ValueError, r"\[1, 6, 4, 5\] here, but got \[6, 4, 5\]"),
        (
            {"weight_hh": STEP},
            ValueError,
            r"weight_hh_l0.*\[1, 20, 5\] here, but got \[1, 6, 4, 5\]",
        ),
        (
            {"keep_h": STEP.clone().requires_grad_()},
            ValueError,
            "masks have no gradient: detach it",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named(
    masks: dict[str, Any], error: type[Exception], message: str
) -> None:
    rnn = cells.LSTM(C, H, zoneout_h=0.1, zoneout_c=0.2)
    names = ", ".join(rnn.declaration.noise)
    assert names == "keep_h, keep_c"
    with pytest.raises(error, match=message):
        rnn(torch.zeros(T, N, C), masks=masks)


def test_dropout_between_layers_has_no_seed_then() -> None:
    rnn = cells.GRU(C, H, 2, dropout=0.5, zoneout_h=0.1)
    masks = {"keep_h": torch.ones(2, T, N, H)}
    with pytest.raises(ValueError, match=r"dropout=0.5 between the layers"):
        rnn(torch.zeros(T, N, C), masks=masks)
    rnn.eval()(torch.zeros(T, N, C), masks=masks)
    with pytest.raises(RuntimeError, match="in place of a seed, which dropout between layers"):
        ops.rnn(
            rnn._cell_name(), torch.zeros(T, N, C), [], list(rnn.parameters()),
            num_layers=2, dropout=0.5, seed=torch.ones(2, T * N, H),
        )  # fmt: skip
    with pytest.raises(
        RuntimeError, match=r"the noise has shape \[2, 24, 4\], expected \[2, 24, 5"
    ):
        ops.rnn(
            rnn._cell_name(), torch.zeros(T, N, C), [], list(rnn.parameters()),
            num_layers=2, seed=torch.ones(2, T * N, 4),
        )  # fmt: skip
