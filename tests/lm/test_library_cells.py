"""`--cell cells.NAME`: every cell of rnnext.cells as a language model."""

from pathlib import Path

import pytest
import torch

from rnnext import cells
from rnnext.cli import main
from rnnext.lm.model import LanguageModel, detach
from rnnext.lm.options import ModelOptions


@pytest.mark.parametrize("name", cells.CELLS)
def test_every_cell_is_a_language_model(name: str) -> None:
    options = ModelOptions(cell=f"cells.{name}", embedding=6, hidden=8)
    options.check()
    model = LanguageModel(options, 30, "rnnext")
    logits, state = model(torch.randint(30, (4, 3)))
    again, _ = model(torch.randint(30, (4, 3)), detach(state))
    (logits.sum() + again.sum()).backward()
    assert logits.shape == (4, 3, 30)
    assert isinstance(model.rnn, getattr(cells, name))
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_run_with_options(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    given = "zoneout_c=0.5 forget_bias=1 weight_dropout=0.5"
    words = f"train --data {data} --cell cells.LSTM --cell-options {given} --hidden 8"
    more = f"--embedding 8 --layers 1 --epochs 1 --out {out}"
    assert main([*words.split(), *more.split()]) == 0
    assert main(["evaluate", "--run", out]) == 0
    assert "cells.LSTM zoneout_c=0.5" in capsys.readouterr().out


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in cells.CELLS)
    assert main(["cells", "--name", "IRNN"]) == 0
    assert capsys.readouterr().out.startswith("IRNN: A rectifier network that begins by rememb")
    assert main(["cells", "--name", "IRN"]) == 2
    assert "--name must be one of LSTM, PeepholeLSTM," in capsys.readouterr().err
