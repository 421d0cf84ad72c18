"""The loop: both implementations, Ctrl-C, divergence, the learning rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rnnext.cli import main
from rnnext.lm import trainer
from rnnext.lm.batches import windows
from rnnext.lm.model import LanguageModel
from rnnext.lm.options import BUILT_IN, Impl, ModelOptions
from rnnext.lm.trainer import train_step

V = 23
Train = Callable[..., int]
Metrics = Callable[[Path], list[dict[str, Any]]]


def loss_curve(
    cell: str, impl: Impl, steps: int = 30, cell_options: tuple[str, ...] = ()
) -> list[float]:
    """The losses of the first steps from one seed, without dropout."""
    torch.manual_seed(1111)
    options = ModelOptions(cell, cell_options, embedding=24, hidden=17, layers=2, dropout=0.0)
    model = LanguageModel(options, V, impl)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    text = torch.arange(steps * 35) % 6
    text[:: V // 4] = torch.arange(len(text[:: V // 4])) % V  # learnable, but not all of it
    state, losses = None, []
    for window in windows(text, 5, 7, torch.device("cpu")):
        loss, state = train_step(model, optimizer, 0.25, window, state)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("cell", BUILT_IN)
def test_both_implementations_learn_alike(cell: str) -> None:
    ours, theirs = loss_curve(cell, "rnnext"), loss_curve(cell, "torch")
    assert len(ours) == 30
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_gradient_stops_at_the_window_but_the_state_goes_on() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelOptions(embedding=4, hidden=4), V, "torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = windows(torch.arange(20) % V, 2, 5, torch.device("cpu"))
    _, state = train_step(model, optimizer, 1.0, first, None)
    assert isinstance(state, tuple)
    assert any(s.any() for s in state)
    loss, _ = train_step(model, optimizer, 1.0, second, state)  # would fail going back into first
    assert not loss.requires_grad


def test_a_run_is_repeatable(data: Path, tmp_path: Path, train: Train, metrics: Metrics) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert train(data, tmp_path / name, "--epochs", 2, "--seed", seed) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")


def test_the_rate_falls_when_validation_does_not_improve(
    data: Path,
    tmp_path: Path,
    train: Train,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([3.0, 2.0, 2.0, 1.0, 5.0, 0.5])
    monkeypatch.setattr(trainer.Trainer, "_validate", lambda self: next(losses))
    assert train(data, tmp_path / "run", "--epochs", 6, "--lr", 16) == 0
    assert [row["lr"] for row in metrics(tmp_path / "run")] == [16, 16, 16, 4, 4, 1]
    assert json.loads((tmp_path / "run/result.json").read_text())["best_epoch"] == 6


def interrupt_at(step: int) -> Callable[..., object]:
    """`train_step`, with Ctrl-C in the call of that number."""
    calls = 0

    def patched(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return train_step(*args)  # type: ignore[arg-type]

    return patched


@pytest.mark.parametrize(("step", "epochs"), [(1, 0), (3, 0), (60, 2)])
def test_ctrl_c_ends_training_and_still_measures(
    data: Path,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    epochs: int,
) -> None:
    monkeypatch.setattr(trainer, "train_step", interrupt_at(step))
    run = tmp_path / "run"
    assert train(data, run, "--epochs", 50) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["stopped"], result["epochs"]) == ("interrupted", epochs)
    assert result["test_perplexity"] > 1
    names = {"config.json", "vocab.txt", "model.safetensors", "train.log", "curves.png"}
    assert names <= {path.name for path in run.iterdir()}
    assert main(["evaluate", "--run", str(run), "--impl", "torch"]) == 0


def test_a_second_ctrl_c_gives_up_the_result_but_not_the_weights(
    data: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnext.lm.train.score", stop)
    run = tmp_path / "run"
    assert train(data, run, "--epochs", 1) == 130
    assert (run / "model.safetensors").exists()
    assert not (run / "result.json").exists()


def diverge_after(steps: int) -> Callable[..., object]:
    """`train_step`, whose loss is NaN after so many calls."""
    calls = 0

    def patched(*args: object) -> tuple[Tensor, object]:
        nonlocal calls
        calls += 1
        loss, state = train_step(*args)  # type: ignore[arg-type]
        return (loss if calls <= steps else loss * float("nan")), state

    return patched


def test_a_diverged_run_keeps_its_best_weights(
    data: Path,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainer, "train_step", diverge_after(60))
    run = tmp_path / "run"
    assert train(data, run, "--epochs", 50) == 1
    assert "the loss became nan in epoch 3" in capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    assert result["stopped"] == "diverged"
    assert result["test_perplexity"] > 1


def test_a_run_that_diverges_at_once_has_no_result(
    data: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(data, run, "--lr", 1e38, "--clip", "inf", "--layers", 1) == 1
    assert "smaller --lr" in capsys.readouterr().out
    assert not (run / "result.json").exists()
    assert not (run / "model.safetensors").exists()


def test_a_compiled_run_is_the_same_run(
    data: Path, tmp_path: Path, train: Train, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    options = ("--impl", "rnnext", "--dropout", 0, "--epochs", 2)
    torch._dynamo.reset()
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        assert train(data, tmp_path / name, *options, *more) == 0
    expected, result = (metrics(tmp_path / name) for name in ("plain", "compiled"))
    for row, other in zip(result, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    # With and without a state, in training, validation and the last measurement.
    assert graphs.frame_count <= 12
    torch._dynamo.reset()
    assert main(["evaluate", "--run", str(tmp_path / "compiled"), "--impl", "torch"]) == 0
