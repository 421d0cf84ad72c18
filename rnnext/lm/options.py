"""What can be asked of each command, and which values make no sense.

The dataclasses below are the command line: a field is an option (`batch_size` is `--batch-size`),
the comment above it is its help, and the class it stands in is its section of `--help`. Nothing
heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from rnnext.cells import CELLS

from .errors import require, whole_number

BUILT_IN = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
LIBRARY = tuple(f"cells.{name}" for name in CELLS)
Impl = Literal["rnnext", "torch"]
Device = Literal["auto", "cpu", "cuda"]
Split = Literal["train", "valid", "test"]

LARGEST_SEED = 2**63 - 1  # what PyTorch's generators take


@dataclass(frozen=True)
class DataOptions:
    """The text, and which of its words the model knows."""

    # A folder with train.txt, valid.txt and test.txt, as Penn Treebank and WikiText come, or one
    # UTF-8 text file: the first 80% of its lines train, the next tenth validates, the last tests.
    data: Annotated[
        Path | None,
        arg(metavar="PATH", help_behavior_hint="(default: the reference text in every Python)"),
    ] = None

    # Words that the training split has fewer times than this become <unk>; 1 keeps every word.
    min_count: Annotated[
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: 1 for a folder, 2 for a single text)"),
    ] = None

    # The largest vocabulary, <unk> and <eos> included: the most frequent words stay. No limit if 0.
    max_vocab: int = 0

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        whole_number("--min-count", self.min_count or 0, 0)
        whole_number("--max-vocab", self.max_vocab, 0)


@dataclass(frozen=True)
class ModelOptions:
    """The network: embedding, dropout, recurrent layers, dropout, decoder."""

    # What a step of the recurrent layers computes: LSTM, GRU, RNN_TANH or RNN_RELU; a published
    # variant, cells.NAME, as `rnnext cells` lists them; or a cell of your own, a subclass of
    # rnnext.Recurrent in a Python file: my_cells.py:MyCell.
    cell: Annotated[str, arg(metavar="NAME|cells.NAME|FILE.py:CLASS")] = "LSTM"

    # What the cell takes besides: the sizes and constants that a variant or a cell of your own
    # declares, and heads; the proj_size of an LSTM; weight_dropout, for DropConnect on W_hh.
    cell_options: Annotated[
        tuple[str, ...], arg(metavar="[NAME=VALUE ...]", help_behavior_hint="(default: none)")
    ] = ()

    # Size of a word's vector.
    embedding: int = 200

    # Units in each recurrent layer.
    hidden: int = 200

    # Recurrent layers, one on top of the other.
    layers: int = 2

    # Share of the values that training zeroes after the embedding, between the layers and before
    # the decoder, from 0 to 1.
    dropout: float = 0.2

    # Let embedding and decoder share one matrix; needs --embedding equal to --hidden, or to the
    # width of the layers' output where that is another.
    tied: bool = False

    @property
    def cell_file(self) -> Path | None:
        """The file of a written cell; None for one of rnnext's own."""
        return None if self.cell in (*BUILT_IN, *LIBRARY) else Path(self.cell.rpartition(":")[0])

    @property
    def cell_name(self) -> str:
        """The name of a cell of rnnext's own, or the class of a written one."""
        return self.cell.rpartition(":")[2]

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        self._check_cell()
        for name in ("embedding", "hidden", "layers"):
            whole_number(f"--{name}", getattr(self, name), 1)
        require(0 <= self.dropout <= 1, f"--dropout must be from 0 to 1, not {self.dropout}")

    def _check_cell(self) -> None:
        file, _, name = str(self.cell).rpartition(":")
        hint = f"; name the class too, {self.cell}:CLASS" if name.endswith(".py") else ""
        if name.startswith("cells."):
            hint = f"; the variants are {', '.join(CELLS)}"
        require(
            self.cell in (*BUILT_IN, *LIBRARY) or (file != "" and name.isidentifier()),
            f"--cell must be {', '.join(BUILT_IN)}, cells.NAME or FILE.py:CLASS, "
            f"not {self.cell}{hint}",
        )
        for option in self.cell_options:
            require(
                "=" in str(option) and option.partition("=")[0].isidentifier(),
                f"--cell-options takes NAME=VALUE, not {option}",
            )


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe: plain SGD on windows of text, slower once validation stops improving."""

    # Streams of text that are read side by side.
    batch_size: int = 20

    # Tokens in a window, which is how far back in time a gradient reaches.
    bptt: int = 35

    # Passes over the training split.
    epochs: int = 20

    # Learning rate at the start; divided by 4 after each epoch that does not improve validation.
    lr: float = 20.0

    # The largest norm that the whole gradient may have; inf lets it be.
    clip: float = 0.25

    # Makes a run repeatable: initial weights, dropout, samples.
    seed: int = 1111

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        whole_number("--batch-size", self.batch_size, 1)
        whole_number("--bptt", self.bptt, 1)
        whole_number("--epochs", self.epochs, 1)
        require(0 < self.lr < math.inf, f"--lr must be greater than 0, not {self.lr}")
        require(self.clip > 0, f"--clip must be greater than 0, not {self.clip}")
        whole_number("--seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True)
class MachineOptions:
    """Where and with what it runs."""

    # Whose recurrent layers run. From one seed both start with the same weights, and each reads
    # what the other has trained. Only rnnext runs cells of your own.
    impl: Impl = "rnnext"

    # CPU threads.
    threads: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: as PyTorch chooses)")
    ] = None

    # A CUDA device where there is one, or the one named.
    device: Device = "auto"

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        if self.threads is not None:
            whole_number("--threads", self.threads, 1, 4096)


@dataclass(frozen=True)
class TrainOptions:
    """Train a word-level language model and leave everything about it in a run folder.

    Prints the exact validation and test perplexity of the best epoch's weights, where the plot of
    the curves is, and a few generated lines. Ctrl-C ends the training early and still does that.

    Example: rnnext train --data penn-treebank --tied --epochs 6 --out runs/ptb
    """

    # The run folder to make; it must be new or empty.
    out: Annotated[
        Path | None,
        arg(metavar="PATH", help_behavior_hint="(default: the first free of runs/CELL-1, -2, ...)"),
    ] = None

    # Compile the model with torch.compile first; it takes a minute, and a C++ compiler.
    compile: bool = False

    text: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        self.text.check()
        self.model.check()
        self.training.check()
        self.machine.check()


@dataclass(frozen=True)
class EvaluateOptions:
    """Print the loss, perplexity and bits per character of a trained model on a text.

    With a batch size of 1 the text is one stream and the perplexity is exact: it is the one that
    `rnnext train` writes into result.json.

    Example: rnnext evaluate --run runs/ptb --split valid
    """

    # The run folder of the model: what --out was for `rnnext train`.
    run: Path

    # Which split of the text.
    split: Split = "test"

    # Another text than the one that the model was trained on: a folder with train.txt, valid.txt
    # and test.txt, of which --split is read, or one UTF-8 text file, which is read whole.
    data: Annotated[
        Path | None,
        arg(metavar="PATH", help_behavior_hint="(default: the text of the run)"),
    ] = None

    # Streams the text is cut into. More are faster, but each starts without knowing what came
    # before it.
    batch_size: int = 1

    machine: MachineOptions = field(default_factory=MachineOptions)

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        whole_number("--batch-size", self.batch_size, 1)
        self.machine.check()


@dataclass(frozen=True)
class GenerateOptions:
    """Let a trained model write: each word is drawn from what it expects after those before.

    Example: rnnext generate --run runs/ptb --prompt "the company said" --top-p 0.9
    """

    # The run folder of the model: what --out was for `rnnext train`.
    run: Path

    # Words to begin with. Without them the text begins as a line does.
    prompt: str = ""

    # Words to write; the end of a line counts as one.
    words: int = 100

    # Below 1 likely words become likelier, above 1 unlikely ones do; 0 always takes the likeliest.
    temperature: float = 1.0

    # Draw from the k likeliest words only; from all if 0.
    top_k: int = 0

    # Draw from the likeliest words that together have at least this probability.
    top_p: float = 1.0

    # The same seed writes the same text.
    seed: int = 1111

    machine: MachineOptions = field(default_factory=MachineOptions)

    def check(self) -> None:
        """Raise `UserError` for values that make no sense."""
        whole_number("--words", self.words, 1)
        require(
            0 <= self.temperature < math.inf,
            f"--temperature must be 0 or more, not {self.temperature}",
        )
        whole_number("--top-k", self.top_k, 0)
        require(
            0 < self.top_p <= 1, f"--top-p must be greater than 0 and at most 1, not {self.top_p}"
        )
        whole_number("--seed", self.seed, 0, LARGEST_SEED)
        self.machine.check()


@dataclass(frozen=True)
class CellsOptions:
    """List the published variants that `rnnext train --cell cells.NAME` takes, with equations.

    Example: rnnext cells --name PeepholeLSTM
    """

    # This one alone.
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
