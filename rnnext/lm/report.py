"""What a run says while it works: on the terminal, and in train.log.

On a terminal a bar shows the epoch, loss, perplexity, speed and time left. Where the output is a
file or a pipe there is a plain line for each epoch, and one every half minute within long ones.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .perplexity import perplexity

HEARTBEAT = 30.0  # seconds between plain lines within an epoch


class Report:
    """A context in which a run reports.

    Args:
        log: file that every line is added to.
        console: where lines and the bar appear; by default stdout.
    """

    def __init__(self, log: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self._log = log.open(
            "a", encoding="utf-8", buffering=1
        )  # a line at a time reaches the file
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, figures="", visible=False)
        self._last_line = time.monotonic()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_bar()
        self._log.close()

    def say(self, text: str = "") -> None:
        """Print a line, above the bar if there is one, and log it."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)
        self.log(text)
        self._last_line = time.monotonic()

    def log(self, text: str) -> None:
        """Add a line to the log only, with the time of day."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in text.split("\n"):
            self._log.write(f"{stamp}  {line}".rstrip() + "\n")

    def start_bar(self, steps: int) -> None:
        """Show a bar for a training of that many steps, if this is a terminal."""
        self._progress.update(self._task, total=steps, visible=True)
        if self.console.is_interactive:
            self._progress.start()

    def stop_bar(self) -> None:
        """Take the bar away."""
        if self.console.is_interactive:
            self._progress.stop()

    def step(self, label: str, done: int, loss: float, tokens_per_second: float) -> None:
        """Show how far the training is.

        Args:
            label: which epoch it is in.
            done: steps done since the training began.
            loss: mean loss of the epoch so far, in nats.
            tokens_per_second: speed of training.
        """
        figures = f"loss {loss:.3f}  perplexity {perplexity(loss):,.1f}"
        figures += f"  {tokens_per_second:,.0f} tokens/s"
        self._progress.update(self._task, completed=done, description=label, figures=figures)
        if not self.console.is_interactive and time.monotonic() - self._last_line > HEARTBEAT:
            total = self._progress.tasks[0].total or done
            self.say(f"{label}  {done / total:.0%} of all steps  {figures}")
