"""What of the GPU's benchmarks can be tested without one: order, floor, verdicts, the session."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gpu_report
import grid
import layers
import paths
import pytest
import session
import torch
from cuda_timing import tf32
from gpu_floor import HOP, Chip, gpu_floor
from gpu_targets import TARGETS, verdicts
from grid import CELLS, MATHS, Job, jobs
from peers import MODES, Shape, WrongResult

CHIP = Chip({"bf16": 500.0, "fp32": 50.0}, 4000.0)


def test_the_floor_by_hand() -> None:
    shape = Shape(100, 64, 1024, L=2, D=2)
    weights = 2 * 4096 * (1024 + 1024) + 2 * 4096 * (2048 + 1024)
    floor = gpu_floor(CHIP, 4, "training", shape, "bf16")
    begin = 64 * 4 * 4096 * 1024  # 64 sequences begin at zero in each of 4 scans
    assert floor.operations == pytest.approx(6 * (6400 * weights - begin) / 500e12)
    assert floor.bytes == pytest.approx(2 * 2 * (weights + 6400 * (1024 + 2048)) / 4000e9)
    assert floor.steps == pytest.approx(2 * 101 * HOP)
    assert floor.bound == "operations"
    assert floor.seconds == floor.operations

    single = gpu_floor(CHIP, 4, "inference", shape, "fp32")
    assert single.bytes == floor.bytes
    assert single.operations == pytest.approx(floor.operations / 3 * 10)
    assert single.steps == floor.steps / 2
    assert gpu_floor(CHIP, 3, "inference", Shape(1024, 1, 256), "bf16").bound == "steps"


def test_the_grid_has_what_was_asked_for_most_important_first() -> None:
    everything = jobs(list(CELLS), list(MATHS))
    assert len(set(everything)) == len(everything)
    layers_of = [job for job in everything if job.kind == "layer"]
    assert len(layers_of) == len(grid.SHAPES) * len(CELLS) * len(MATHS)
    assert {(job.math, grid.SHAPES[job.shape]) for job in everything[:12]} == {("bf16", 0)}
    assert {job.math for job in everything[-10:]} == {"tf32"}
    first = {(job.kind, job.math): k for k, job in reversed([*enumerate(everything)])}
    assert first["written", "bf16"] < first["layer", "fp16"]

    some = jobs(["GRU"], ["fp32"], [Shape(3, 2, 8), Shape(3, 2, 8, packed=True)])
    assert [str(job) for job in some] == [
        "GRU T3 N2 H8 fp32",
        "GRU T3 N2 H8 packed fp32",
        "written LSTM T3 N2 H8 fp32",
        "written LightGRU T3 N2 H8 fp32",
        "written LayerNormLSTM T3 N2 H8 fp32",
    ]


def row(job: Job, mode: str = "training", algorithm: str = "STANDARD", **ratios: float) -> Any:
    shape = job.shape
    facts = {"kind": job.kind, "cell": job.cell, "math": job.math, "mode": mode, "id": str(job)}
    sizes = {"N": shape.N, "H": shape.H, "packed": shape.packed}
    return {**facts, **sizes, "algorithm": algorithm, "ratios": ratios, "graph_ratios": {}}


def test_targets_are_judged() -> None:
    few, persistent = Shape(35, 20, 650), Shape(1024, 16, 768)
    rows = [
        row(Job("layer", "LSTM", few, "bf16"), torch=8.0),
        row(Job("layer", "GRU", few, "fp16"), torch=2.0),
        row(Job("layer", "GRU", few, "fp32"), torch=1.2),
        row(Job("layer", "LSTM", persistent, "fp16"), algorithm="PERSIST_STATIC", torch=0.8),
        row(Job("written", "LightGRU", few, "bf16"), **{"built-in": 0.8, "loop": 12.0}),
    ]
    table = verdicts(rows)
    for line in (
        "| bf16, fp16 where cuDNN is slow, N <= 20, H <= 1024 | training | cuDNN | 2 | "
        "4.00 (aim 4.00: met) | 2.00 (aim 2.00: met) at GRU T35 N20 H650 fp16 |",
        "| fp32, TF32 the same, H <= 768 | training | cuDNN | 1 | 1.20 (aim 2.50: **not met**) | "
        "1.20 (aim 1.30: **not met**) at GRU T35 N20 H650 fp32 |",
        "| fp16 where cuDNN is persistent | training | cuDNN | 1 | 0.80 (aim 0.91: **not met**) |",
        "| written cells of product and pointwise form, beside our LSTM | training | built-in | 1 "
        "| 0.80 (aim 0.77: met) |",
        "| the same, beside the loop | training | loop | 1 | 12.00 (aim 10.00: met) |",
        "| packed lengths | training | cuDNN | 0 | not measured (aim 3.00) |",
    ):
        assert line in table


def test_every_row_of_the_grid_that_a_target_means_is_there() -> None:
    """No target is without rows, but the persistent one of what cuDNN does."""
    rows = []
    for job in jobs(list(CELLS), list(MATHS)):
        way = "" if job.kind == "written" else layers.cudnns_way(job, torch.device("cuda"))
        rows.append(row(job, "training", way, torch=1.0, loop=1.0, **{"built-in": 1.0}))
    for target in TARGETS:
        assert any(target.belongs(r) for r in rows), target.where


def test_what_is_wrong_is_refused() -> None:
    job = Job("layer", "GRU", Shape(3, 2, 8), "bf16")
    peer = {"outputs": 1e-3, "gradients": 2e-2}
    layers.refuse_wrong(job, "training", {"torch": peer, "rnnext": {**peer, "gradients": 4e-2}})
    for bad in (5e-2, float("nan"), float("inf")):
        with pytest.raises(WrongResult, match=r"GRU T3 N2 H8 bf16 training: the error of rnnext"):
            layers.refuse_wrong(job, "training", {"torch": peer, "rnnext": {"gradients": bad}})
    with pytest.raises(WrongResult, match="rnnext graph's outputs"):
        layers.refuse_wrong(job, "x", {"torch": peer, "rnnext graph": {"outputs": 0.1}})


def options(**changed: Any) -> argparse.Namespace:
    usual: dict[str, Any] = {"minutes": 1.0, "device": "cpu", "cells": ["GRU"], "maths": ["fp32"]}
    usual |= {"modes": list(MODES), "shapes": [Shape(3, 2, 8, packed=True)], "seconds": 0.001}
    return argparse.Namespace(**{**usual, **changed})


def test_a_run_writes_its_result_and_report(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    layers.run(options(), path)
    result = json.loads(path.read_text())
    assert [r["mode"] for r in result["rows"]] == ["training", "inference"]
    assert result["left_out"] == result["refused"] == []
    first = result["rows"][0]
    assert first["microseconds_a_step"] == pytest.approx(1e3 * first["milliseconds"]["rnnext"] / 3)
    assert first["ratios"].keys() == {"torch"}
    assert first["errors"]["rnnext"].keys() == {"outputs", "gradients"}
    assert "| GRU | training | fp32 | T3 N2 H8 packed |" in path.with_suffix(".md").read_text()
    assert gpu_report.long(result, path) + "\n" == path.with_suffix(".md").read_text()


def test_the_ways_of_a_scan_are_timed_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "paths.json"
    given = options(shapes=[Shape(3, 2, 8)], maths=["bf16", "fp32"])
    result = paths.run(given, path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result["refused"] == []
    found = {(row["math"], row["mode"]): row for row in result["rows"]}
    assert set(found) == {(math, mode) for math in ("bf16", "fp32") for mode in MODES}
    for (_, mode), measured in found.items():
        for way in paths.WAYS:
            assert measured["microseconds_a_step"][way] > 0
            assert measured["errors"][way] < 1e-2
            assert len(measured["expected"][way]["plan"]) == (2 if mode == "training" else 1)
    assert paths.run(options(minutes=-1.0), None)["rows"] == []


def test_a_way_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "worst_error", lambda *_: float("nan"))
    result = paths.run(options(shapes=[Shape(3, 2, 8)], modes=["inference"]), None)
    assert result["rows"] == []
    assert len(result["refused"]) == 1
    assert "GRU T3 N2 H8 fp32 inference: the error of auto" in result["refused"][0]


def test_a_run_without_time_says_what_it_left_out() -> None:
    result = layers.run(options(minutes=-1.0), None)
    assert result["rows"] == []
    assert result["left_out"] == ["GRU T3 N2 H8 packed fp32"]


def test_an_error_of_one_job_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(layers, "measure", fails)
    result = layers.run(options(), None)
    assert result["refused"] == [
        f"GRU T3 N2 H8 packed fp32 {mode}: out of memory" for mode in MODES
    ]


def test_tf32_is_put_back() -> None:
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    with tf32(True):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def stage(code: str, most: float = 30.0, least: float = 1.0) -> session.Stage:
    return session.Stage("try", lambda seconds: [sys.executable, "-c", code], most, least)


def test_each_stage_leaves_the_later_ones_their_least() -> None:
    first, second = stage("", most=100, least=10), stage("", most=50, least=20)
    assert session.allotted(first, [second], 500) == 100
    assert session.allotted(first, [second], 60) == 40
    assert session.allotted(first, [second], 29) == 0
    assert session.allotted(second, [], 29) == 29


@pytest.mark.parametrize(
    ("code", "result", "telling"),
    [
        ("print('failed: x')", "ok", ["failed: x"]),
        ("print('a'); raise SystemExit(3)", "failed (3)", ["a"]),
        ("import time; print('b', flush=True); time.sleep(60)", "over its time", None),
    ],
)
def test_a_stage_is_run_and_its_end_recorded(
    code: str, result: str, telling: list[str] | None, tmp_path: Path
) -> None:
    begin = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        outcome = session.run(stage(code), 2.0, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.result == result
    assert outcome.telling == telling if telling else "KeyboardInterrupt" in outcome.telling
    assert time.monotonic() - begin < 15
    assert (tmp_path / "log").read_text().startswith(f"$ {sys.executable} -c ")


def test_a_stage_that_hears_no_signal_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    outcome = session.run(stage(code), 2.0, tmp_path / "log")
    assert outcome.result == "over its time"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    missing = session.Stage("try", lambda seconds: ["/no/such/program"], 10, 1)
    assert session.run(missing, 5.0, tmp_path / "log").result.startswith("does not start: ")


def test_a_session_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = [stage("raise SystemExit(1)"), stage("print('failed: |')"), stage("", least=300)]
    monkeypatch.setattr(session, "stages", lambda *_: three)
    monkeypatch.setattr(session, "allotted", lambda s, later, left: 10.0 if s.least < 9 else 0.0)
    monkeypatch.setattr(sys, "argv", ["session.py", "--out", str(tmp_path)])
    assert session.main() == 1
    results = [outcome["result"] for outcome in json.loads((tmp_path / "session.json").read_text())]
    assert results == ["failed (1)", "ok", "no time left"]
    page = (tmp_path / "summary.md").read_text()
    assert "| try | failed (1) |" in page
    assert "failed: |" in page


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_dry_run_prints_every_command_and_fits(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["session.py", "--dry-run", "--device", device])
    assert session.main() == 0
    printed = capsys.readouterr().out
    for word in ("pip install", "compile_cells", "pytest", "layers.py", "sanitize", "--quick"):
        assert word in printed
    seconds = [int(line.split(", ")[1][:-3]) for line in printed.splitlines() if line[-3:] == " s:"]
    assert min(seconds) > 0
    assert sum(seconds) <= 9.5 * 60
    files = [w for w in printed.split() if w.startswith(("tests/", "benchmarks/"))]
    assert all((session.ROOT / name).is_file() for name in files)
    tested = {path.name for path in (session.ROOT / "tests" / "gpu").glob("test_*.py")}
    assert tested == {Path(name).name for name in files if "test_" in name}
