"""The command line as a user meets it: help, numbers, mistakes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rnnext import cli
from rnnext.lm import report as report_module
from rnnext.lm.report import Report

Fails = Callable[..., str]
Train = Callable[..., int]
WriteFolder = Callable[[str, str, str], Path]

OPTIONS = {
    *("--data", "--out", "--cell", "--cell-options", "--embedding", "--hidden", "--layers"),
    *("--dropout", "--tied", "--compile"),
    *("--bptt", "--batch-size", "--epochs", "--lr", "--clip", "--seed", "--threads", "--impl"),
    *("--min-count", "--max-vocab", "--device"),
}


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What `rnnext ... --help` prints."""
    capsys.readouterr()
    assert cli.main([*argv, "--help"]) == 0
    return capsys.readouterr().out


def test_help_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    overview = shown(capsys)
    assert all(command in overview for command in cli.COMMANDS)
    help_of_train = shown(capsys, "train")
    assert set(re.findall(r"^\W{1,4}(--[a-z][a-z-]+)", help_of_train, re.M)) == OPTIONS
    assert "None" not in help_of_train
    for option in ("--split", "--data", "--batch-size", "--run"):
        assert option in shown(capsys, "evaluate").split()
    for option in ("--prompt", "--words", "--temperature", "--top-k", "--top-p", "--seed"):
        assert option in shown(capsys, "generate").split()


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys, types\n"
        "package = sys.modules['rnnext'] = types.ModuleType('rnnext')\n"
        f"package.__path__ = [{str(Path(cli.__file__).parent)!r}]\n"  # without its __init__
        "from rnnext.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "argv",
    [[], ["dance"], ["train", "--cell"], ["train", "--hidden", "two"], ["evaluate"]],
    ids=" ".join,
)
def test_arguments_that_do_not_parse_exit_with_2(argv: list[str]) -> None:
    assert cli.main(argv) == 2


def test_evaluate_prints_what_train_found(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained / "result.json").read_text())
    same = (tmp_path / "text.txt").resolve()
    same.write_bytes((data / "test.txt").read_bytes())
    for split, options in (
        ("valid", ["--split", "valid"]),
        ("test", []),
        ("test", ["--data", str(same)]),
        ("valid", ["--data", str(data), "--split", "valid"]),
    ):
        capsys.readouterr()
        assert cli.main(["evaluate", "--run", str(trained), "--impl", "torch", *options]) == 0
        printed = dict(re.findall(r"^(\S+(?: \S+)*)  +([\d.]+)", capsys.readouterr().out, re.M))
        assert float(printed["loss"]) == pytest.approx(result[f"{split}_loss"], abs=1e-4)
        assert float(printed["perplexity"]) == pytest.approx(
            result[f"{split}_perplexity"], abs=1e-3
        )
        assert float(printed["bits per character"]) == pytest.approx(
            result[f"{split}_bits_per_character"], abs=1e-4
        )


def test_evaluate_with_more_streams_is_close(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert cli.main(f"evaluate --run {trained} --impl torch --batch-size 5".split()) == 0
    perplexity = float(re.findall(r"^perplexity +(\S+)", capsys.readouterr().out, re.M)[0])
    assert perplexity == pytest.approx(result["test_perplexity"], rel=0.1)


def test_evaluate_says_when_the_text_has_changed(
    write_folder: WriteFolder, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder("a b\n" * 9, "a b\n", "b a\n")
    assert train(folder, tmp_path / "run", "--epochs", 1) == 0
    (folder / "test.txt").write_text("b a b b\n")
    capsys.readouterr()
    assert cli.main(["evaluate", "--run", str(tmp_path / "run"), "--impl", "torch"]) == 0
    assert "the text has changed: this split had 3 tokens" in capsys.readouterr().out


def test_unknown_words_are_said_aloud(
    write_folder: WriteFolder, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder("a b c\n" * 9, "a b\n", "a b d d\n")
    assert train(folder, tmp_path / "run", "--epochs", 1) == 0
    printed = capsys.readouterr().out
    assert "50.00% of the words unknown (predicted as <unk>)" in printed
    assert "50.0% of its words count as <unk>" in printed
    assert "the training split has no <unk>" in printed
    assert "--min-count 2" in printed


BAD_OPTIONS = [
    "--embedding 0",
    "--hidden -3",
    "--layers 0",
    "--dropout 1.5",
    "--dropout nan",
    "--tied --embedding 8 --hidden 16",
    "--bptt 0",
    "--batch-size 0",
    "--batch-size 100000",
    "--epochs 0",
    "--lr 0",
    "--lr inf",
    "--clip -1",
    "--clip nan",
    "--seed -1",
    "--threads 0",
    "--min-count -1",
    "--max-vocab -1",
    "--max-vocab 3",
    "--min-count 1000000",
    "--hidden 1000000000",
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(options: str, data: Path, tmp_path: Path, fails: Fails) -> None:
    argv = ["train", "--data", data, "--out", tmp_path / "run", "--impl", "torch"]
    fails(*argv, *options.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--temperature -1",
        "--temperature nan",
        "--top-k -1",
        "--top-p 0",
        "--top-p 1.1",
        "--words 0",
        "--seed -1",
    ],
)
def test_bad_options_of_generate(options: str, trained: Path, fails: Fails) -> None:
    fails("generate", "--run", trained, "--impl", "torch", *options.split())


GOOD = b"a b c\nb c a\n"


@pytest.mark.parametrize(
    ("train_text", "message"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n \n\t\n", "only blank lines"),
        (b"a b\ncaf\xe9\n", "not UTF-8 text (line 2)"),
        (b"\xff\xfea\x00", "not UTF-8 text (line 1)"),
        (b"word word\nword\n", "vocabulary of 1 words"),
        (b"<unk> <eos>\n", "vocabulary of 0 words"),
    ],
)
def test_bad_texts(train_text: bytes | None, message: str, tmp_path: Path, fails: Fails) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("valid.txt", "test.txt"):
        (folder / name).write_bytes(GOOD)
    if train_text is not None:
        (folder / "train.txt").write_bytes(train_text)
    argv = ["train", "--data", folder, "--out", tmp_path / "run", "--impl", "torch"]
    assert message in fails(*argv, "--batch-size", 1)
    assert not (tmp_path / "run").exists()


def test_texts_that_are_not_there(tmp_path: Path, trained: Path, fails: Fails) -> None:
    assert "No such file" in fails("train", "--data", tmp_path / "nowhere")
    assert "train.txt, valid.txt and test.txt" in fails(
        "train", "--data", tmp_path, "--impl", "torch"
    )
    evaluate = ("evaluate", "--run", trained, "--impl", "torch")
    assert "No such file" in fails(*evaluate, "--data", tmp_path / "nowhere")
    assert "a data folder holds" in fails(*evaluate, "--data", tmp_path)


def test_one_text_too_short_or_too_blank_to_split(tmp_path: Path, fails: Fails) -> None:
    text = tmp_path / "text"
    text.write_text("a b\n" * 9)
    assert "needs 10 or more" in fails("train", "--data", text, "--impl", "torch")
    text.write_text("a b\n" * 18 + "\n" * 2)
    assert "the test part" in fails("train", "--data", text, "--impl", "torch")


def test_run_folders_that_are_none(tmp_path: Path, fails: Fails) -> None:
    for command in ("evaluate", "generate"):
        assert "there is no folder" in fails(command, "--run", tmp_path / "nowhere")
        assert "is no run folder" in fails(command, "--run", tmp_path)


def test_more_streams_than_tokens(trained: Path, fails: Fails) -> None:
    argv = ("evaluate", "--run", trained, "--impl", "torch", "--batch-size", 10**6)
    assert "--batch-size 1000000 is more than" in fails(*argv)


def test_a_reader_that_goes_away() -> None:
    code = "import sys; from rnnext.cli import main; sys.exit(main(['train', '--help']))"
    writer = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert b"Traceback" not in writer.stderr.read()
    writer.wait()


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Report(tmp_path / "log", console) as report:
        report.start_bar(100)
        report.step("epoch 1/2", 10, loss=2.0, tokens_per_second=12345.6)
        report.say("[a line] <unk> :smile:")
    shown = screen.getvalue()
    assert "epoch 1/2" in shown
    assert "perplexity 7.4" in shown
    assert "12,346 tokens/s" in shown
    assert "[a line] <unk> :smile:" in shown
    log = (tmp_path / "log").read_text()
    assert log.endswith("[a line] <unk> :smile:\n")
    assert log.count("\n") == 1


def test_a_line_now_and_then_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(report_module.time, "monotonic", lambda: clock)
    screen = io.StringIO()
    with Report(tmp_path / "log", Console(file=screen, width=120)) as report:
        report.start_bar(1000)
        for step in range(1000):
            clock += 0.1
            report.step("epoch 1/2", step, loss=2.0, tokens_per_second=1.0)
    assert screen.getvalue().count("\n") == 3, "100 seconds, a line every 30"
