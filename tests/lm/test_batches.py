"""Streams and windows: no token lost, none twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnext.lm.batches import IGNORED, streams, windows
from rnnext.lm.vocabulary import EOS_ID

CPU = torch.device("cpu")


def text(length: int) -> torch.Tensor:
    """Tokens that are all different, so that each can be followed."""
    return torch.arange(1, length + 1)


def test_the_diagram_of_the_module() -> None:
    (first, second) = windows(text(11), 2, 3, CPU)
    assert first.inputs.T.tolist() == [[EOS_ID, 1, 2], [6, 7, 8]]
    assert first.targets.T.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert second.inputs.T.tolist() == [[3, 4, 5], [9, 10, EOS_ID]]
    assert second.targets.T.tolist() == [[4, 5, 6], [10, 11, IGNORED]]
    assert (first.tokens, second.tokens) == (6, 5)


@given(st.data())
def test_every_token_is_a_target_once_after_the_token_before_it(draw: st.DataObject) -> None:
    length = draw.draw(st.integers(1, 60))
    n = draw.draw(st.integers(1, length))
    window = draw.draw(st.integers(1, 70))
    parts = list(windows(text(length), n, window, CPU))
    inputs = torch.cat([part.inputs for part in parts])
    targets = torch.cat([part.targets for part in parts])
    real = targets != IGNORED
    assert sorted(targets[real].tolist()) == text(length).tolist()
    assert torch.equal(inputs[real], targets[real] - 1)
    assert [part.tokens for part in parts] == [int((p.targets != IGNORED).sum()) for p in parts]
    assert real[:-1].all(), "padding is in the last row only"
    assert targets.T[real.T].tolist() == text(length).tolist(), "streams follow one another"


def test_one_stream_is_the_text_itself() -> None:
    inputs, targets = streams(text(5), 1)
    assert inputs.T.tolist() == [[EOS_ID, 1, 2, 3, 4]]
    assert targets.T.tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize("n", [0, 6])
def test_there_is_a_token_for_each_stream(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} streams"):
        streams(text(5), n)
