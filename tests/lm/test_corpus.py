"""Text to lines to numbers: the rules that make perplexities comparable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rnnext.lm.data import load_corpus, python_topics, read_lines
from rnnext.lm.errors import UserError
from rnnext.lm.vocabulary import EOS, EOS_ID, UNK, UNK_ID, Vocabulary

WriteFolder = Callable[[str, str, str], Path]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_token_for_every_word_and_line(write_folder: WriteFolder) -> None:
    # Penn Treebank's form: a space at both ends of a line, <unk> already in the text.
    train = " aer banknote <unk> N \n pierre <unk> N years \n"
    corpus = load_corpus(write_folder(train, " years \n", " N \n"))
    vocabulary = Vocabulary.build(corpus.train, corpus.default_min_count)
    assert set(vocabulary.words) == {"aer", "banknote", "N", "pierre", "years", UNK, EOS}
    text = vocabulary.encode(corpus.train)
    assert len(text.tokens) == 8 + 2
    assert text.unknown == 0, "a <unk> of the text itself is no unknown word"
    assert (
        "".join(vocabulary.spell(text.tokens.tolist()))
        == "aer banknote <unk> N\npierre <unk> N years\n"
    )


def test_the_vocabulary_holds_both_specials_even_if_the_text_has_none() -> None:
    assert Vocabulary.build(["b a"]).words == (EOS, UNK, "a", "b")


def test_the_vocabulary_is_of_the_training_split_only(write_folder: WriteFolder) -> None:
    corpus = load_corpus(write_folder("a b\n", "a c\n", "c d\n"))
    vocabulary = Vocabulary.build(corpus.train)
    assert vocabulary.words == (EOS, UNK, "a", "b")
    test = vocabulary.encode(corpus.test)
    assert test.tokens.tolist() == [UNK_ID, UNK_ID, EOS_ID]
    assert test.unknown_share == 1


def test_words_are_ordered_by_count_then_alphabet() -> None:
    assert Vocabulary.build(["z z z y y x b a y"]).words == (EOS, UNK, "y", "z", "a", "b", "x")


def test_min_count_and_max_vocab() -> None:
    lines = ["a a a b b c c d"]
    assert Vocabulary.build(lines, min_count=2).words == (EOS, UNK, "a", "b", "c")
    assert Vocabulary.build(lines, min_count=0) == Vocabulary.build(lines)
    assert Vocabulary.build(lines, max_vocab=4).words == (EOS, UNK, "a", "b")
    for limits in ({"max_vocab": 3}, {"min_count": 3}, {"max_vocab": 1}):
        with pytest.raises(UserError, match="at least 2"):
            Vocabulary.build(lines, **limits)


def test_a_blank_line_is_one_eos(tmp_path: Path) -> None:
    lines = read_lines(write(tmp_path / "text", b"\n = Title = \n\n a b \n"))
    assert lines == ["", " = Title = ", "", " a b "]
    text = Vocabulary((EOS, UNK, "=", "Title", "a", "b")).encode(lines)
    assert text.tokens.tolist() == [0, 2, 3, 2, 0, 0, 4, 5, 0]


@pytest.mark.parametrize(
    "content",
    [b"a b\nc\n", b"a b\nc", b"a b\r\nc\r\n", b"a b\rc\r", b"\xef\xbb\xbfa b\nc\n"],
    ids=["plain", "no newline at the end", "dos", "old mac", "byte order mark"],
)
def test_any_line_end_is_understood(tmp_path: Path, content: bytes) -> None:
    assert read_lines(write(tmp_path / "text", content)) == ["a b", "c"]


def test_only_line_ends_end_lines(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x0bd\x0ce\u00a0f\n"
    lines = read_lines(write(tmp_path / "text", odd.encode()))
    assert len(lines) == 1
    assert lines[0].split() == list("abcdef")


def test_characters_are_those_of_the_tokens() -> None:
    lines = ["  two   words ", "", "unknown"]
    vocabulary = Vocabulary((EOS, UNK, "two", "words"))
    assert vocabulary.encode(lines).characters == len("two words\n\nunknown\n")


def test_spelling() -> None:
    vocabulary = Vocabulary((EOS, UNK, "a", "b"))
    assert "".join(vocabulary.spell([2, 3, 0, 0, 1, 2])) == "a b\n\n<unk> a"


def test_a_fingerprint_tells_vocabularies_apart() -> None:
    one, two = Vocabulary((EOS, UNK, "a", "b")), Vocabulary((EOS, UNK, "b", "a"))
    assert one.fingerprint == Vocabulary(one.words).fingerprint != two.fingerprint


def test_one_text_is_split_by_lines(tmp_path: Path) -> None:
    lines = [f"word{i}" for i in range(25)]
    corpus = load_corpus(write(tmp_path / "novel.txt", "\n".join(lines).encode()))
    assert (corpus.train, corpus.valid, corpus.test) == (lines[:20], lines[20:22], lines[22:])
    assert "1-20 train, 21-22 validate, 23-25 test" in corpus.source
    assert corpus.default_min_count == 2


def test_the_default_text() -> None:
    corpus = python_topics()
    assert corpus == python_topics()
    vocabulary = Vocabulary.build(corpus.train, corpus.default_min_count)
    texts = [vocabulary.encode(lines) for lines in (corpus.train, corpus.valid, corpus.test)]
    words = [text.words for text in texts]
    assert sum(words) > 45_000
    assert 0.75 < words[0] / sum(words) < 0.85
    assert (texts[0].tokens == UNK_ID).any(), "<unk> must be learnt"
    paragraphs = [
        {" ".join(p.split()) for p in "\n".join(lines).split("\n\n")} - {""}
        for lines in (corpus.train, corpus.valid, corpus.test)
    ]
    assert not paragraphs[0] & paragraphs[1]
    assert not paragraphs[0] & paragraphs[2]


def test_tokens_are_int64() -> None:
    text = Vocabulary.build(["a b"]).encode(["a b"] * 3)
    assert text.tokens.dtype == torch.int64
    assert text.tokens.tolist() == [2, 3, 0] * 3
