"""The training loop: one step, one epoch, the learning rate, the best weights."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import IGNORED, Window, windows
from .generate import sample
from .model import LanguageModel, State, detach
from .options import TrainingOptions
from .perplexity import perplexity, score
from .report import Report
from .run_folder import RunFolder
from .vocabulary import Encoded, Vocabulary

# Validation after each epoch reads this many streams, for speed; the numbers a run ends with read
# one. The difference is the context at nine seams.
VALIDATION_STREAMS = 10
STEPS_PER_REPORT = 10  # the loss is fetched from the device, shown and checked this often

Stopped = Literal["finished", "interrupted", "diverged"]


class Diverged(Exception):
    """The loss is no longer a finite number."""


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    clip: float,
    window: Window,
    state: State | None,
) -> tuple[Tensor, State]:
    """Learn from one window.

    The state is carried over from the window before, so that the model reads on in the text as if
    there were no windows; and it is detached, so that the gradient stops where the window begins.
    Without that, every step would go back through all windows since the epoch began: through
    memory that grows with the text, and with weights that have changed since.

    Args:
        model: in training mode.
        optimizer: updates its parameters.
        clip: largest norm of the whole gradient.
        window: inputs and targets `[T, N]`.
        state: what the step before returned; None at the start of the text.

    Returns:
        The mean loss of the window's tokens (a detached scalar, on the model's device) and the
        state to pass on.
    """
    optimizer.zero_grad()
    logits, state = model(window.inputs, None if state is None else detach(state))
    loss = F.cross_entropy(logits.flatten(0, 1), window.targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach(), state


@dataclass
class Trainer:
    """A training from first step to last; reports, and saves into the run folder as it goes.

    Attributes:
        rows: the lines of metrics.jsonl so far.
        best_loss: the validation loss of the saved weights; infinity while there are none.
        best_epoch: the epoch they come from; 0 if training was interrupted before the first ended.
        tokens, seconds: trained on, without validation.
    """

    model: LanguageModel
    vocabulary: Vocabulary
    train: Encoded
    valid: Encoded
    options: TrainingOptions
    run: RunFolder
    report: Report

    def __post_init__(self) -> None:
        options, device = self.options, self.model.device
        tokens = self.train.tokens
        self.batches = list(windows(tokens, options.batch_size, options.bptt, device))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=options.lr)
        self.lr = options.lr
        self.rows: list[dict[str, Any]] = []
        self.best_loss = math.inf
        self.best_epoch = 0
        self.tokens = 0
        self.seconds = 0.0

    def fit(self) -> Stopped:
        """Train until the last epoch, Ctrl-C, or a loss that is not finite.

        If Ctrl-C comes before any epoch ended, the weights at that point are validated and saved.
        `has_weights` says whether there are any good ones afterwards.
        """
        self.report.start_bar(self.options.epochs * len(self.batches))
        try:
            for epoch in range(1, self.options.epochs + 1):
                self._epoch(epoch)
            self.report.stop_bar()
            return "finished"
        except KeyboardInterrupt:
            self.report.stop_bar()
            self.report.say("interrupted: training ends here")
            if not self.has_weights:
                self._keep_if_best(0, self._validate())
            return "interrupted"
        except Diverged as error:
            self.report.stop_bar()
            self.report.say(f"{error}: training ends here; a smaller --lr or --clip may help")
            return "diverged"

    @property
    def has_weights(self) -> bool:
        """Whether some weights were worth saving."""
        return self.best_loss < math.inf

    @property
    def tokens_per_second(self) -> float:
        """Speed of training, without validation."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def _epoch(self, epoch: int) -> None:
        start = time.monotonic()
        tokens_before, seconds_before = self.tokens, self.seconds
        train_loss = self._train_epoch(epoch)
        valid_loss = self._validate()
        if not math.isfinite(valid_loss):
            raise Diverged(f"the validation loss is {valid_loss} after epoch {epoch}")
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "valid_loss": valid_loss,
            "valid_perplexity": perplexity(valid_loss),
            "lr": self.lr,
            "seconds": time.monotonic() - start,
            "tokens_per_second": (self.tokens - tokens_before) / (self.seconds - seconds_before),
        }
        better = self._keep_if_best(epoch, valid_loss)
        self.run.append_metrics(row)
        self.rows.append(row)
        self._say_row(row, better)
        if not better:
            self.lr /= 4
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training split; returns its mean loss."""
        options, batches = self.options, self.batches
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        seen, mean = 0, math.nan
        state: State | None = None
        tokens_before, seconds_before, start = self.tokens, self.seconds, time.monotonic()
        for step, window in enumerate(batches, 1):
            loss, state = train_step(self.model, self.optimizer, options.clip, window, state)
            total += loss * window.tokens
            seen += window.tokens
            if step % STEPS_PER_REPORT == 0 or step == len(batches):
                mean = float(total) / seen
                if not math.isfinite(mean):
                    raise Diverged(f"the loss became {mean} in epoch {epoch} by step {step}")
                seconds = time.monotonic() - start
                self.tokens, self.seconds = tokens_before + seen, seconds_before + seconds
                self.report.step(
                    f"epoch {epoch}/{options.epochs}",
                    (epoch - 1) * len(batches) + step,
                    mean,
                    seen / seconds,
                )
        return mean

    def _validate(self) -> float:
        n = min(VALIDATION_STREAMS, len(self.valid.tokens))
        return score(self.model, self.valid, n).loss

    def _keep_if_best(self, epoch: int, valid_loss: float) -> bool:
        """Save the weights if they are the best so far; whether they are."""
        if not valid_loss < self.best_loss:
            return False
        self.run.save_weights(self.model, self.vocabulary)
        self.best_loss, self.best_epoch = valid_loss, epoch
        return True

    def _say_row(self, row: dict[str, Any], better: bool) -> None:
        self.report.say(
            f"epoch {row['epoch']:3}/{self.options.epochs}  "
            f"train perplexity {row['train_perplexity']:8.2f}  "
            f"valid perplexity {row['valid_perplexity']:8.2f}{'  best' if better else '      '}  "
            f"lr {row['lr']:<7.4g}  {row['tokens_per_second']:7,.0f} tokens/s  "
            f"{row['seconds']:5.1f} s"
        )
        words = sample(self.model, (), 20, self.options.seed + row["epoch"])
        self.report.log("sample: " + " / ".join("".join(self.vocabulary.spell(words)).split("\n")))
