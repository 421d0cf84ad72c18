"""Where the text comes from: three lists of lines, whatever the user points at.

A line is a string without its line end. Words are what white space separates, and every line is
followed by `<eos>`, a blank one too: that is how WikiText's published token counts come about.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError, require
from .options import Split

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Corpus:
    """The lines of the three splits, in reading order.

    Attributes:
        source: what it is and how it was split, to be said aloud.
        ready_made: whether it came as three files. Their words are then taken as they are;
            a text that was split here has its rare words replaced by `<unk>` by default.
    """

    train: list[str]
    valid: list[str]
    test: list[str]
    source: str
    ready_made: bool

    def lines(self, split: Split) -> list[str]:
        """The lines of the split of that name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    @property
    def default_min_count(self) -> int:
        """Words rarer than this are `<unk>` unless `--min-count` says otherwise."""
        return 1 if self.ready_made else 2


def load_corpus(path: Path | None) -> Corpus:
    """The text at `path`.

    Args:
        path: a folder with train.txt, valid.txt and test.txt, or one text file, or None for the
            text that every Python carries.

    Raises:
        UserError: there is no such text, it is not UTF-8, or a split of it has no words.
    """
    if path is None:
        return python_topics()
    if path.is_dir():
        train, valid, test = (read_lines(path / f"{split}.txt") for split in SPLITS)
        return Corpus(train, valid, test, f"{path}: train.txt, valid.txt, test.txt", True)
    return split_lines(read_lines(path), str(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file; a byte order mark is skipped, any line end is understood.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is empty or has only blank lines.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = (
            "; a data folder holds train.txt, valid.txt and test.txt"
            if path.parent.is_dir() and path.name in {f"{split}.txt" for split in SPLITS}
            else ""
        )
        raise UserError(f"cannot read {path}: {error.strerror}{hint}") from error
    require(len(content) > 0, f"{path} is empty: it must hold the text, one sentence a line")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 text (line {line}): convert it, for example with iconv"
        ) from error
    lines = [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
    require_words(lines, str(path))
    return lines


def require_words(lines: list[str], name: str) -> None:
    """Raise `UserError` if no line has a word on it."""
    require(any(map(str.split, lines)), f"{name} has no words, only blank lines")


def split_lines(lines: list[str], name: str) -> Corpus:
    """Cut one text into its first 80% of lines, the next 10% and the last 10%."""
    require(
        len(lines) >= 10,
        f"{name} has {len(lines)} lines: to be split 80/10/10 by lines it needs 10 or more",
    )
    first, second = len(lines) * 8 // 10, len(lines) * 9 // 10
    train, valid, test = lines[:first], lines[first:second], lines[second:]
    for split, part in (("training", train), ("validation", valid), ("test", test)):
        require_words(part, f"the {split} part of {name} (split 80/10/10 by lines)")
    source = (
        f"{name}, split by lines: 1-{first} train, {first + 1}-{second} validate, "
        f"{second + 1}-{len(lines)} test"
    )
    return Corpus(train, valid, test, source, False)


def python_topics() -> Corpus:
    """The reference text that `help()` shows for Python's topics, from the standard library.

    The topics come in alphabetical order. A paragraph (up to a blank line) that an earlier topic
    already had is left out, or much of the test split would have been seen in training. Of each ten
    paragraphs the first eight train, the ninth validates and the tenth tests, so that all three
    splits touch on all topics. The text differs a little from one Python version to the next.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError("this Python came without pydoc_data: name a text with --data") from error
    seen: set[str] = set()
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                part = max(len(seen) % 10 - 7, 0)
                parts[part].extend(line for line in paragraph.split("\n") if line.strip())
                parts[part].append("")
                seen.add(words)
    source = (
        "Python's own reference text (pydoc_data.topics), repeated paragraphs left out; "
        "of every ten paragraphs 8 train, 1 validates, 1 tests"
    )
    return Corpus(*parts, source, False)
