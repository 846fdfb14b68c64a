"""The plain-Python tokenizers: small enough to check by hand."""

import doctest

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llmfast.tokenizer import teaching
from llmfast.tokenizer.teaching import ByteBPE, CharacterTokenizer

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea shells"


def test_examples_in_docstrings():
    assert doctest.testmod(teaching).failed == 0


def test_a_worked_example():
    # The best pairs: aa (4 times, overlapping ones counted), aaa (2, as ab, but greater), aaab (2).
    merges = teaching.learn_merges({b"aaabdaaabac": 1}, 3)
    tokenizer = ByteBPE(merges)
    assert tokenizer.token_bytes[256:] == [b"aa", b"aaa", b"aaab"]
    assert tokenizer.encode("aaabdaaabac") == [258, ord("d"), 258, ord("a"), ord("c")]


def test_overlapping_pairs_are_counted_each_and_merged_from_the_left():
    assert teaching.count_pairs({(1, 1, 1): 2}) == {(1, 1): 4}
    assert teaching.merge_pair((1, 1, 1), (1, 1), 9) == (9, 1)


@pytest.mark.parametrize(("tie_break", "first"), [("bytes", b"cd"), ("smallest_ids", b"ab")])
def test_tie_break(tie_break, first):
    tokenizer = ByteBPE.train(["ab", "cd"], 257, tie_break=tie_break)
    assert tokenizer.token_bytes[256] == first


@given(st.text())
def test_encoding_is_lossless(text):
    tokenizer = ByteBPE.train([TEXT], 280)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_stay_inside_words():
    tokenizer = ByteBPE.train([TEXT], 290)
    words = {word.encode() for word in regex.findall(teaching.GPT2_PATTERN, TEXT)}
    assert all(any(token in word for word in words) for token in tokenizer.token_bytes[256:])
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2


@given(st.text(min_size=1))
def test_characters_round_trip(text):
    tokenizer = CharacterTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))
    assert list(tokenizer.characters) == sorted(tokenizer.characters)


def test_unknown_character_is_named():
    with pytest.raises(ValueError, match="'z' is not among the 3 known"):
        CharacterTokenizer.train("abc").encode("abz")
