"""Sampling, and the command `rnnext generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rnnext.cli import main
from rnnext.lm.generate import distribution

LOGITS = torch.tensor([0.5, 0.1, 0.25, 0.15]).log() + 3  # any constant: only differences count


def close(actual: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_the_models_own_distribution() -> None:
    close(distribution(LOGITS), 0.5, 0.1, 0.25, 0.15)


def test_temperature() -> None:
    squares = torch.tensor([0.25, 0.01, 0.0625, 0.0225]) / 0.345
    close(distribution(LOGITS, temperature=0.5), *squares.tolist())
    close(distribution(LOGITS, temperature=0), 1, 0, 0, 0)
    close(distribution(LOGITS, temperature=1e-300), 1, 0, 0, 0)


def test_top_k() -> None:
    close(distribution(LOGITS, top_k=1), 1, 0, 0, 0)
    close(distribution(LOGITS, top_k=2), 2 / 3, 0, 1 / 3, 0)
    close(distribution(LOGITS, top_k=4), 0.5, 0.1, 0.25, 0.15)
    close(distribution(LOGITS, top_k=99), 0.5, 0.1, 0.25, 0.15)
    close(distribution(torch.zeros(4), top_k=3), 1 / 3, 1 / 3, 1 / 3, 0)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, (1, 0, 0, 0)),
        (0.49, (1, 0, 0, 0)),
        (0.51, (2 / 3, 0, 1 / 3, 0)),
        (0.74, (2 / 3, 0, 1 / 3, 0)),
        (0.76, (0.5 / 0.9, 0, 0.25 / 0.9, 0.15 / 0.9)),
        (0.91, (0.5, 0.1, 0.25, 0.15)),
        (1.0, (0.5, 0.1, 0.25, 0.15)),
    ],
)
def test_top_p_is_the_smallest_set_that_reaches_it(
    top_p: float, expected: tuple[float, ...]
) -> None:
    close(distribution(LOGITS, top_p=top_p), *expected)


def test_top_p_counts_after_temperature_and_top_k() -> None:
    # Of the two likeliest, the first has 2/3 of the probability, and 4/5 at temperature 0.5.
    close(distribution(LOGITS, top_k=2, top_p=0.6), 1, 0, 0, 0)
    close(distribution(LOGITS, top_k=2, top_p=0.7), 2 / 3, 0, 1 / 3, 0)
    close(distribution(LOGITS, temperature=0.5, top_k=2, top_p=0.75), 1, 0, 0, 0)


def generated(capsys: pytest.CaptureFixture[str], run: Path, *options: object) -> tuple[str, str]:
    capsys.readouterr()
    words = ["generate", "--run", run, "--impl", "torch", *options]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_same_seed_writes_the_same_text(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    one = generated(capsys, trained, "--seed", 1, "--words", 60)
    assert one == generated(capsys, trained, "--seed", 1, "--words", 60)
    assert one != generated(capsys, trained, "--seed", 2, "--words", 60)


def test_greedy_needs_no_seed(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    greedy = generated(capsys, trained, "--temperature", 0, "--seed", 1)
    assert greedy == generated(capsys, trained, "--temperature", 0, "--seed", 2)
    assert greedy == generated(capsys, trained, "--top-k", 1)


def test_eos_is_a_newline_and_counts_as_a_word(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    text, notes = generated(capsys, trained, "--words", 50)
    assert "<eos>" not in text
    assert notes == ""
    assert len(text.split()) + text.count("\n") - 1 == 50  # the last newline ends the output
    assert not any(line.startswith(" ") for line in text.split("\n"))


def test_the_text_goes_on_from_the_prompt(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    text, notes = generated(capsys, trained, "--prompt", "the-cat\nthe-dog sees", "--words", 3)
    assert text.startswith("the-cat\nthe-dog sees")
    assert notes == ""


def test_unknown_prompt_words_are_reported(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    text, notes = generated(capsys, trained, "--prompt", "the-cat zebras zebras eat", "--words", 1)
    assert notes == "not in the vocabulary, read as <unk>: zebras, eat\n"
    assert text.startswith("the-cat <unk> <unk> <unk>")
