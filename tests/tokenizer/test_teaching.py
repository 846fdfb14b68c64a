"""The plain-Python tokenizers: small enough to check by hand."""

import doctest
import importlib
import pkgutil

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

import llmfast.tokenizer
from llmfast.tokenizer import Tokenizer, teaching
from llmfast.tokenizer.teaching import ByteBPE, CharacterTokenizer

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea shells"


def test_examples_in_docstrings():
    modules = [module.name for module in pkgutil.iter_modules(llmfast.tokenizer.__path__)]
    results = {
        name: doctest.testmod(importlib.import_module(f"llmfast.tokenizer.{name}")) for name in [*modules, "patterns"]
    }
    assert not any(result.failed for result in results.values())
    assert results["teaching"].attempted == 7
    assert sum(result.attempted > 0 for result in results.values()) >= 5


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


@settings(deadline=None)
@given(st.text())
def test_encoding_is_lossless(text):
    tokenizer = ByteBPE.train([TEXT], 280)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_stay_inside_words():
    tokenizer = ByteBPE.train([TEXT], 290)
    words = {word.encode() for word in regex.findall(teaching.GPT2_PATTERN, TEXT)}
    assert all(any(token in word for word in words) for token in tokenizer.token_bytes[256:])
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2


def test_without_splitting_it_is_the_engine():
    """minbpe's basic form: merges across words, each text one piece."""
    documents = [TEXT, "a sea of shells  \n\n sea sea"]
    mine = ByteBPE.train(documents, 300, pattern=teaching.WHOLE)
    engine = Tokenizer.train(documents, 300, pattern="none", special_tokens=(), min_frequency=1)
    assert mine.token_bytes == sorted(engine._mergeable_ranks, key=engine._mergeable_ranks.__getitem__)
    assert mine.encode(TEXT) == engine.encode(TEXT)
    assert any(b" " in token[1:] for token in mine.token_bytes)


@settings(deadline=None)
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


@pytest.mark.parametrize("unknown", [-1, 260])
def test_unknown_tokens_are_named(unknown):
    """-1 is no token, though Python takes it for the last one."""
    for tokenizer in (ByteBPE.train([TEXT], 260), CharacterTokenizer.train(TEXT)):
        with pytest.raises(ValueError, match=f"{unknown} is not a token: they go from 0 to"):
            tokenizer.decode([0, unknown])


def test_a_vocabulary_smaller_than_the_bytes():
    with pytest.raises(ValueError, match="vocab_size must be at least 256, one for each byte, got 255"):
        ByteBPE.train([TEXT], 255)
