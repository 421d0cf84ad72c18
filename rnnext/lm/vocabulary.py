"""Words to numbers and back."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import require

EOS, UNK = "<eos>", "<unk>"
EOS_ID, UNK_ID = 0, 1


@dataclass(frozen=True)
class Encoded:
    """A text as the model sees it.

    Attributes:
        tokens: int64 `[n]`, every word and, after every line, `<eos>`.
        words: how many of the tokens are words.
        unknown: how many of the words the vocabulary lacks; they are `<unk>` in `tokens`. A
            `<unk>` that stands in the text itself is a word like any other.
        characters: length of the text with one space between words and one newline after each
            line: what the tokens say, without indentation and the like, which they do not.
    """

    tokens: Tensor
    words: int
    unknown: int
    characters: int

    @property
    def unknown_share(self) -> float:
        """The share of the words that the vocabulary lacks, from 0 to 1."""
        return self.unknown / max(self.words, 1)


@dataclass(frozen=True)
class Vocabulary:
    """Every word that the model knows; a word's number is its place in `words`.

    `<eos>` is 0 and `<unk>` is 1, whether or not the training text has them; the others follow
    from the most frequent to the rarest, equally frequent ones in the order of their code points.
    """

    words: tuple[str, ...]
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {word: i for i, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def build(lines: Iterable[str], min_count: int = 1, max_vocab: int = 0) -> Vocabulary:
        """The vocabulary of a training split.

        Args:
            lines: the training split.
            min_count: words seen fewer times are left out.
            max_vocab: the largest number of entries, `<eos>` and `<unk>` included; 0: no limit.

        Raises:
            UserError: fewer than two words remain, so that there is nothing to predict.
        """
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split())
        for special in (EOS, UNK):
            counts.pop(special, None)
        kept = sorted(
            (word for word, count in counts.items() if count >= min_count),
            key=lambda word: (-counts[word], word),
        )
        if max_vocab:
            kept = kept[: max(max_vocab - 2, 0)]
        limits = f" with --min-count {min_count}" if min_count > 1 else ""
        limits += f" with --max-vocab {max_vocab}" if max_vocab else ""
        require(
            len(kept) >= 2,
            f"the training text leaves a vocabulary of {len(kept)} words{limits}: "
            f"at least 2 are needed beside {UNK} and {EOS}",
        )
        return Vocabulary((EOS, UNK, *kept))

    def encode(self, lines: Iterable[str]) -> Encoded:
        """The numbers of a text, `<eos>` after every line."""
        tokens = array("q")
        words = unknown = characters = 0
        for line in lines:
            split = line.split()
            ids = [self.ids.get(word, -1) for word in split]
            missing = ids.count(-1)
            tokens.extend([UNK_ID if i < 0 else i for i in ids] if missing else ids)
            tokens.append(EOS_ID)
            words += len(split)
            unknown += missing
            characters += sum(map(len, split)) + max(len(split), 1)
        return Encoded(torch.frombuffer(tokens, dtype=torch.int64), words, unknown, characters)

    def spell(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of some tokens piece by piece: a space between words, a newline for `<eos>`."""
        space = ""
        for token in tokens:
            if token == EOS_ID:
                yield "\n"
                space = ""
            else:
                yield space + self.words[token]
                space = " "

    @property
    def fingerprint(self) -> str:
        """Tells one vocabulary from another: SHA-256 of its words in order, as hex digits."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()
