"""Everything that needs a GPU in one go of less than ten minutes: build, test, sanitize, measure.

    python benchmarks/gpu/session.py --out results           # on the machine with the GPU
    python benchmarks/gpu/session.py --dry-run               # the commands and their times
    python benchmarks/gpu/session.py --device cpu --skip build --tests tests/gpu/test_gpu_errors.py

Each stage has so much time at most, and less where the later ones would get too little; what fails
or takes too long is recorded, and the later ones still run. In the folder of --out: a log for each
stage, the result files, and after each stage session.json and summary.md, a page to read first.
Ends with 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU = Path("benchmarks/gpu")
SANITIZER = "compute-sanitizer"
# The files of tests that say most come first.
TESTS = ("paths", "kernels", "written_cells", "repeats", "streams", "layout", "autograd")
TESTS += ("modules", "transforms", "errors")

# What a reader wants of a log.
TELLING = (
    r"^(FAILED|ERROR)\b|^!+ |^(=+ )?\d+ (passed|failed|skipped).* in |deadlock",
    r"(ERROR|RACECHECK|SYNCCHECK) SUMMARY|^\d+ calls",
    r"^not timed:|^\||^failed:|rnnext: CUDA kernels|^Successfully installed",
)


@dataclass(frozen=True)
class Stage:
    """A command, and what time it gets.

    Attributes:
        command: of the seconds that it may take.
        most: seconds at most.
        least: seconds below which it is not begun, kept for it while earlier stages run.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    most: float
    least: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    name: str
    result: str
    seconds: float
    allotted: float
    telling: list[str]

    @property
    def good(self) -> bool:
        return self.result == "ok"


def stages(out: Path, device: str, tests: Sequence[str]) -> list[Stage]:
    """In order of worth, should the machine be taken away: are they right, are they fast."""
    python, small = sys.executable, ["--device", device] if device == "cpu" else []
    chosen = list(tests) or [f"tests/gpu/test_gpu_{name}.py" for name in TESTS]
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
    pytest = [python, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", "--maxfail=60"]
    pytest += ["--durations=20", "-o", "faulthandler_timeout=60", f"--junitxml={out / 'tests.xml'}"]

    def benchmark(seconds: float) -> list[str]:
        minutes = f"{max(seconds - 20, 1) / 60:.2f}"  # what has begun by then is ended
        command = [python, str(GPU / "layers.py"), "--minutes", minutes]
        command += [*small, "--out", str(out / "layers.json")]
        return command + (["--shapes", "3,2,8", "--seconds", "0.02"] if small else [])

    def ways(seconds: float) -> list[str]:
        minutes = f"{max(seconds - 10, 1) / 60:.2f}"
        command = [python, str(GPU / "paths.py"), "--minutes", minutes]
        command += [*small, "--out", str(out / "paths.json")]
        return command + (["--shapes", "3,2,8", "--seconds", "0.02"] if small else [])

    def sanitize(tool: str) -> Stage:
        found = shutil.which(SANITIZER) or f"/usr/local/cuda/bin/{SANITIZER}"
        under = [found, "--tool", tool, "--error-exitcode", "9"] if device == "cuda" else []

        def command(seconds: float) -> list[str]:
            begun = f"{seconds - 12:.0f}"  # python and the tool take theirs
            return [*under, python, "tests/gpu/sanitize.py", "--seconds", begun]

        return Stage(tool, command, 45, 25, {"RNNEXT_TEST_DEVICE": device})

    assumptions = [python, str(GPU / "assumptions.py"), "--quick"]
    assumptions += ["--out", str(out / "assumptions.json")]
    build = {"RNNEXT_CUDA": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if architecture := present_architecture():  # the others would take time that is lent
        build["TORCH_CUDA_ARCH_LIST"] = architecture
    return [
        Stage("device", lambda seconds: ["nvidia-smi"], 15, 1),
        Stage("build", lambda seconds: pip, 270, 30, build),
        Stage("cells", lambda s: [python, str(GPU / "compile_cells.py"), *small], 100, 15),
        Stage("tests", lambda seconds: pytest, 240, 60, {"RNNEXT_TEST_DEVICE": device}),
        Stage("benchmark", benchmark, 200, 60),
        Stage("paths", ways, 60, 20),
        *(sanitize(tool) for tool in ("memcheck", "racecheck", "synccheck")),
        Stage("assumptions", lambda seconds: assumptions, 75, 25),
    ]


def present_architecture() -> str:
    """The compute capability of the first GPU, as "9.0"; "" where there is none."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
    return said if re.fullmatch(r"\d+\.\d", said) else ""


def allotted(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """Seconds of those left for a stage, so that each later one still has its least; 0: too few."""
    seconds = min(stage.most, left - sum(other.least for other in later))
    return seconds if seconds >= stage.least else 0.0


def run(stage: Stage, seconds: float, log: Path) -> Outcome:
    """Run a stage, for so many seconds at most."""
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
    environment.setdefault("RNNEXT_CACHE", str(ROOT / "build" / "gpu-cells"))
    command = list(stage.command(seconds))
    with log.open("w") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_hears_interrupts,
            )
        except OSError as error:
            return Outcome(stage.name, f"does not start: {error}", 0.0, seconds, [])
        code = ended(process, seconds)
    result = "over its time" if code is None else "ok" if code == 0 else f"failed ({code})"
    lines = log.read_text(errors="replace").splitlines()[1:]
    found = [line for line in lines if any(re.search(pattern, line) for pattern in TELLING)]
    if result != "ok" and len(found) < 3:
        found += lines[-12:]
    return Outcome(stage.name, result, time.monotonic() - begin, seconds, found[:80])


def _hears_interrupts() -> None:
    """A shell that runs a command in the background has it ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The status of a process; None where it had to be ended, first so that it can still report.

    A process that waits for a kernel that never ends does not end either; then it is left.
    """
    for how, wait in ((None, seconds), (signal.SIGINT, 6.0), (signal.SIGKILL, 6.0)):
        if how is not None:
            os.killpg(process.pid, how)
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
        return code if how is None else None
    return None


def page(outcomes: Sequence[Outcome], head: str) -> str:
    """The summary, as Markdown."""
    lines = [head, "", "| stage | result | seconds | of |", "|---|---|--:|--:|"]
    lines += [f"| {o.name} | {o.result} | {o.seconds:.0f} | {o.allotted:.0f} |" for o in outcomes]
    for outcome in outcomes:
        if outcome.telling:
            plain = not any(line.startswith("|") for line in outcome.telling)
            fence = ["```"] if plain else []
            lines += ["", f"## {outcome.name}", "", *fence, *outcome.telling, *fence]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "session")
    add("--minutes", type=float, default=9.5, help="for all stages")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script itself")
    add("--only", nargs="+", default=[], help="stages")
    add("--skip", nargs="+", default=[], help="stages")
    add("--tests", nargs="+", default=[], help="what pytest is given instead of all files")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    options = parser.parse_args()
    out = options.out.resolve()
    todo = stages(out, options.device, options.tests)
    if unknown := {*options.only, *options.skip} - {stage.name for stage in todo}:
        parser.error(f"no stages: {', '.join(sorted(unknown))}")
    todo = [s for s in todo if s.name not in options.skip and s.name in (options.only or [s.name])]
    if options.dry_run:
        left = 60 * options.minutes
        for k, stage in enumerate(todo):
            seconds = allotted(stage, todo[k + 1 :], left)
            settings = "".join(f"{key}={value} " for key, value in stage.environment.items())
            print(
                f"{stage.name}, {seconds:.0f} s:\n  {settings}{shlex.join(stage.command(seconds))}"
            )
            left -= seconds
        return 0

    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    for k, stage in enumerate(todo):
        seconds = allotted(stage, todo[k + 1 :], end - time.monotonic())
        if seconds:
            outcome = run(stage, seconds, out / f"{stage.name}.log")
        else:
            outcome = Outcome(stage.name, "no time left", 0.0, 0.0, [])
        outcomes.append(outcome)
        facts = [{**asdict(o), "good": o.good} for o in outcomes]
        (out / "session.json").write_text(json.dumps(facts, indent=1) + "\n")
        head = f"# A session on {options.device}, {time.strftime('%Y-%m-%d %H:%M')}"
        (out / "summary.md").write_text(page(outcomes, head))
        print(f"{stage.name}: {outcome.result}, {outcome.seconds:.0f} s", flush=True)
    print("\n" + page(outcomes, head))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
