"""`--cell FILE.py:CLASS`: cells of the user's, from training to a run folder that stands alone."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cells_of_a_user
import pytest
import torch
from test_trainer import loss_curve

from rnnext.cli import main
from rnnext.lm.cells import load_cell, read_options
from rnnext.lm.errors import UserError
from rnnext.lm.model import LanguageModel
from rnnext.lm.options import ModelOptions

Fails = Callable[..., str]
Train = Callable[..., int]

V, T, N = 11, 6, 3
RNNEXT = ("--impl", "rnnext")  # the tests' small models are torch's otherwise
PROJECTED = ("proj_size=8", "forget=1")
CELLS = [("Gated", ()), ("Projected", PROJECTED)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of cells, to be changed at will."""
    return Path(shutil.copy(cells_of_a_user.__file__, tmp_path / "my_cells.py"))


def written(file: Path, name: str = "Gated", *cell_options: str, **sizes: int) -> ModelOptions:
    sizes = {"embedding": 8, "hidden": 16, **sizes}
    return ModelOptions(cell=f"{file}:{name}", cell_options=cell_options, **sizes)


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "options"), CELLS)
def test_a_run_stands_alone(
    name: str,
    options: tuple[str, ...],
    file: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--data", data, "--cell", f"my_cells.py:{name}", "--cell-options", *options]
    sizes = "--embedding 8 --hidden 16 --tied --batch-size 4 --bptt 7 --epochs 2 --threads 1"
    sizes += " --lr 4"  # at 20, seeds and last digits end anywhere between 4 and 130
    tied = name == "Projected"  # only there the layers' output is as wide as the embedding
    report = printed(capsys, *argv, *(w for w in sizes.split() if tied or w != "--tied"))
    run = Path(f"runs/{name.lower()}-1")
    assert " ".join(("2 x 16", name, *options, "(rnnext)")) in report
    assert (run / "cell.py").read_bytes() == file.read_bytes()
    result = json.loads((run / "result.json").read_text())
    assert 1 < result["test_perplexity"] < 17
    assert result["options"]["cell"] == f"my_cells.py:{name}"
    config = json.loads((run / "config.json").read_text())["model"]
    assert (config["cell"], config["cell_options"]) == (f"{file}:{name}", list(options))

    evaluate, generate = ("evaluate", "--run", run), ("generate", "--run", run)
    first = printed(capsys, *evaluate), printed(capsys, *generate)
    perplexity = float(re.findall(r"^perplexity +(\S+)", first[0], re.M)[0])
    assert perplexity == pytest.approx(result["test_perplexity"], abs=1e-3)
    for spoil in (lambda: file.write_text("raise ValueError"), file.unlink):
        spoil()
        shutil.move(run, f"{run}-elsewhere")
        run = Path(f"{run}-elsewhere")
        again = printed(capsys, "evaluate", "--run", run), printed(capsys, "generate", "--run", run)
        assert first == again
    assert not (run / "__pycache__").exists()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_learns_as_torchs(file: Path) -> None:
    ours = loss_curve(f"{file}:Projected", "rnnext", cell_options=("proj_size=8",))
    theirs = loss_curve("LSTM", "torch", cell_options=("proj_size=8",))
    builtin = loss_curve("LSTM", "rnnext", cell_options=("proj_size=8",))
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert builtin == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("name", "options"), CELLS)
def test_states_of_any_number_and_width_go_on(
    name: str, options: tuple[str, ...], file: Path
) -> None:
    model = LanguageModel(written(file, name, *options), V, "rnnext").eval()
    tokens = torch.arange(T * N).reshape(T, N) % V
    whole, state = model(tokens)
    widths = [s.shape for s in (state if isinstance(state, tuple) else (state,))]
    assert widths == ([(2, N, 16)] if name == "Gated" else [(2, N, 8), (2, N, 16)])
    parts, state = [], None
    for token in tokens:
        logits, state = model(token[None], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(model(tokens[:, :1])[0], whole[:, :1])


def test_the_decoder_is_as_wide_as_the_output(file: Path) -> None:
    for options, impl in (
        (written(file, "Projected", *PROJECTED, embedding=8), "rnnext"),
        (ModelOptions(cell_options=("proj_size=8",), embedding=8, hidden=16), "torch"),
    ):
        assert LanguageModel(options, V, impl).decoder.in_features == 8  # type: ignore[arg-type]


def test_tied_weights_follow_the_output(file: Path, data: Path, fails: Fails) -> None:
    argv = ["train", "--data", data, "--cell", f"{file}:Projected", "--tied"]
    argv += ["--hidden", 16, "--embedding", 16, "--cell-options", *PROJECTED]
    assert "--embedding (16) and the width of the layers' output (8)" in fails(*argv)


def test_the_module_of_a_file(file: Path, tmp_path: Path) -> None:
    layer = load_cell(written(file), "rnnext").layer
    assert load_cell(written(file), "rnnext").layer is layer
    assert re.fullmatch("my_cells_[0-9a-f]{16}", layer.__module__)
    assert "class Gated" in inspect.getsource(layer)
    assert pickle.loads(pickle.dumps(layer)) is layer
    other = Path(shutil.copy(file, tmp_path / "my cells.txt"))
    assert load_cell(written(other), "rnnext").layer is not layer
    file.write_text(file.read_text().replace("torch.tanh(n)", "torch.relu(n)"))
    changed = load_cell(written(file), "rnnext").layer
    assert changed is not layer
    assert "relu" in inspect.getsource(changed)
    assert str(tmp_path) not in sys.path


HELPED = """\
from beside_a_cell import squash
import rnnext

class Helped(rnnext.Recurrent):
    gates = ("a",)

    def step(a):
        return squash(a)
"""


def test_modules_beside_the_file(
    file: Path,
    data: Path,
    tmp_path: Path,
    train: Train,
    fails: Fails,
) -> None:
    file.write_text(HELPED)
    helper, run = tmp_path / "beside_a_cell.py", tmp_path / "run"
    helper.write_text("from torch import tanh as squash\n")
    assert train(data, run, *RNNEXT, "--cell", f"{file}:Helped", "--epochs", 1) == 0

    del sys.modules["beside_a_cell"]
    helper.rename(tmp_path / "elsewhere.py")
    error = fails("evaluate", "--run", run)
    assert f"{run}/cell.py:1: ModuleNotFoundError: No module named 'beside_a_cell'; put" in error
    assert f"stood beside the cell in {tmp_path} into {run}" in error
    shutil.copy(tmp_path / "elsewhere.py", run / "beside_a_cell.py")
    assert main(["evaluate", "--run", str(run)]) == 0
    del sys.modules["beside_a_cell"]
    run.rename(tmp_path / "moved")
    (tmp_path / "moved/beside_a_cell.py").rename(helper)
    assert main(["evaluate", "--run", str(tmp_path / "moved")]) == 0
    del sys.modules["beside_a_cell"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "LSMT",
            "--cell must be LSTM, GRU, RNN_TANH, RNN_RELU, cells.NAME or FILE.py:CLASS, not LSMT",
        ),
        ("my_cells.py", "not my_cells.py; name the class too, my_cells.py:CLASS"),
        ("my_cells.py:", "--cell must be"),
        (":Gated", "--cell must be"),
        ("mine.py:Gated", "cannot read the cell's file mine.py: No such file or directory"),
        (".:Gated", "cannot read the cell's file .: Is a directory"),
        (
            "my_cells.py:Gatet",
            "my_cells.py: there is no class Gatet; its cells are Gated, Projected, Unfinished",
        ),
        ("my_cells.py:Settings", "Settings is no subclass of rnnext.Recurrent; its cells are"),
        ("my_cells.py:rnnext", "rnnext is no subclass of rnnext.Recurrent; its cells are"),
        ("my_cells.py:Unfinished", "Unfinished declares no cell"),
        ("my_cells.py:Projected", "Projected needs the size proj_size: --cell-options proj_size="),
        (
            "my_cells.py:Gated --cell-options leak=1",
            "--cell-options leak=1: Gated has no leak, it takes heads (int), weight_",
        ),
        ("my_cells.py:Gated --cell-options heads=3", "Gated: got heads=3: expected a divisor"),
        ("my_cells.py:Gated --cell-options heads=0", "Gated: heads must be greater than zero"),
        ("my_cells.py:Gated --cell-options heads", "--cell-options takes NAME=VALUE, not heads"),
        ("my_cells.py:Gated --cell-options =1", "--cell-options takes NAME=VALUE, not =1"),
        ("my_cells.py:Gated --cell-options heads=1 heads=2", "--cell-options gives heads twice"),
        (
            "my_cells.py:Projected --cell-options proj_size=8.0",
            "--cell-options proj_size=8.0: proj_size must be of type int\n",
        ),
        ("my_cells.py:Projected --cell-options proj_size=-1", "must be greater than zero"),
        (
            "my_cells.py:Projected --cell-options forget=one",
            "--cell-options forget=one: forget must be of type float, as its default 0.0\n",
        ),
        (
            "my_cells.py:Projected --cell-options linear_output=2",
            "linear_output must be true or false, as its default False",
        ),
        (
            "my_cells.py:Projected --cell-options proj_size=8 gate=relu",
            "my_cells.py: Projected: its step raised KeyError",
        ),
        ("my_cells.py:Gated --impl torch", "--impl torch: PyTorch has no Gated, my_cells.py has"),
        ("GRU --cell-options proj_size=8", "GRU has no proj_size, it takes weight_dropout (float)"),
        ("LSTM --cell-options size=8", "LSTM has no size, it takes proj_size (int), weight_"),
        ("LSTM --cell-options proj_size=300", "LSTM: proj_size has to be smaller"),
        ("my_cells.py:Gated --hidden 1000000000", "a model of this size cannot be made"),
    ],
)
@pytest.mark.usefixtures("file")
def test_mistakes_in_options(
    words: str,
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(data), "--cell", *words.split()]) == 2
    error = capsys.readouterr().err
    if "its step" in message:  # shown as it is: the cell, the problem, the line
        message = message.removeprefix("my_cells.py: ")
        assert re.search(r'\n  .*my_cells.py:\d+: squash = {"sigmoid"', error)
    else:
        assert error.count("\n") == 1
    assert f"rnnext: {message}" in error or message in error
    assert not (tmp_path / "runs").exists()


STEP = """\
import torch
import rnnext

class Broken(rnnext.Recurrent):
    gates = ("a",)
    {part}

    def step(a, {argument}):
        {line}
        return torch.tanh(a)
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\nimport nowhere_at_all\n", ":2: ModuleNotFoundError: No module named 'now"),
        ("import torch\n\ntorch.tanhh\n", ":3: AttributeError: module 'torch' has no attribute"),
        ("class Broken\n", ":1: SyntaxError: expected ':'"),
        ("a = '\0'\n", "SyntaxError: source code string cannot contain null bytes"),
        ("raise ValueError\n", ":1: ValueError"),
        ("raise ValueError('a\\nb')\n", ":1: ValueError: a b"),
        ("import sys\nsys.exit('usage')\n", ":2: SystemExit: usage"),
        ("from .beside import a\n", ":1: ImportError: attempted relative import"),
        ("pass", "there is no class Broken; it has no cell at all"),
        (
            STEP.format(part='states = "h"', argument="h", line=""),
            ":4: TypeError: Broken.states is the string 'h': expected a tuple of names",
        ),
        (
            STEP.format(
                part="params = {'u': lambda weight: weight.nowhere}", argument="u", line=""
            ),
            ":6: AttributeError: 'Parameter' object has no attribute 'nowhere'",
        ),
    ],
)
def test_files_that_are_no_cells(
    source: str, message: str, file: Path, data: Path, tmp_path: Path, fails: Fails
) -> None:
    file.write_text(source)
    error = fails("train", "--data", data, "--cell", f"{file}:Broken", "--out", tmp_path / "run")
    assert message in error
    assert error.startswith(f"rnnext: {file}")
    assert not (tmp_path / "run").exists()
    kept = any(getattr(module, "__file__", None) == str(file) for module in sys.modules.values())
    assert kept == ("does not import" not in error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a = torch.softmax(a, 1)", "maxima and minima over the units of a row"),
        ("if a.sum() > 0: a = 0 * a", "Python control flow"),
        ("a = torch.lgamma(a)", "torch.lgamma"),
    ],
)
def test_steps_that_cannot_be_compiled(
    line: str,
    message: str,
    file: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file.write_text(STEP.format(part="", argument="h", line=line))
    argv = ["train", "--data", data, "--cell", f"{file}:Broken", "--out", tmp_path / "run"]
    assert main([str(word) for word in argv]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rnnext: Broken: ")
    assert message in first
    assert second == f"  {file}:9: {line}"
    assert not (tmp_path / "run").exists()


def test_values_of_options() -> None:
    declared = {"size": int, "count": 2, "leak": 0.1, "on": True, "kind": "tanh"}
    given = ["size=3", "count=-4", "leak=1e-3", "on=False", "kind=a=b"]
    values = read_options("Cell", declared, given)
    assert values == {"size": 3, "count": -4, "leak": 0.001, "on": False, "kind": "a=b"}
    assert [type(v) for v in values.values()] == [int, int, float, bool, str]
    assert read_options("Cell", declared, ["size=3"]) == {"size": 3}
    with pytest.raises(UserError, match="needs the size size"):
        read_options("Cell", declared, [])


def test_a_copy_that_is_gone_or_damaged(
    file: Path, data: Path, tmp_path: Path, train: Train, fails: Fails
) -> None:
    run = tmp_path / "run"
    assert train(data, run, *RNNEXT, "--cell", f"{file}:Gated", "--epochs", 1) == 0
    assert "--impl torch: PyTorch has no Gated" in fails(
        "evaluate", "--run", run, "--impl", "torch"
    )
    (run / "cell.py").write_text("import torch\n")
    assert f"{run}/cell.py: there is no class Gated" in fails("evaluate", "--run", run)
    (run / "cell.py").unlink()
    assert f"cannot read the cell's file {run}/cell.py: No such" in fails("generate", "--run", run)
