"""Offsets in characters: those of Hugging Face's library, for every pattern, in characters cut by tokens, too."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfast.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

TEXT = "the cat sat on the mat, and the dog's naïve café 日本語 12345 🙂👩‍👩‍👧\n\n  def main():\n\treturn 'x' ½ "
PIECES = [
    "the",
    " cat",
    " ",
    "  ",
    "\n",
    "é",
    "日本",
    "語",
    "🙂",
    "👩‍👩‍👧",
    "e\u0301",
    "½",
    "1",
    "x",
    "<|endoftext|>",
    "ſ",
]


@functools.cache
def pair_of(pattern):
    """Tokens that end inside characters are among what is learned of a few bytes of Japanese."""
    ours = Tokenizer.train([TEXT * 20, "日月木 " * 3], 330, pattern=pattern, allow_smaller=True)
    return ours, tokenizers.Tokenizer.from_str(ours._to_json())


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "o200k", "deepseek", "none"])
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=60, deadline=None)
def test_offsets_are_those_of_hugging_face(pattern, text):
    ours, theirs = pair_of(pattern)
    expected = theirs.encode(text, add_special_tokens=False)
    ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
    assert ids == expected.ids
    assert offsets == expected.offsets


def test_tokens_inside_a_character_have_all_of_it():
    ours, _ = pair_of("none")
    ids, offsets = ours.encode_with_offsets("a½🙂b")
    assert len(ids) > 4
    assert offsets[0] == (0, 1)
    assert offsets[-1] == (3, 4)
    assert {offset for offset in offsets if offset[0] == 2} == {(2, 3)}


def test_surrogates_count_as_in_the_text_that_was_given():
    """Trap: a pair of surrogates is one character when it is encoded, and two of the str."""
    ours, _ = pair_of("gpt2")
    text = "a\ud83d\ude42b\ud800c"
    ids, offsets = ours.encode_with_offsets(text)
    assert ids == ours.encode(text)
    assert offsets[0] == (0, 1)
    assert {(1, 3), (3, 4), (4, 5)} <= set(offsets)
    assert offsets[-1] == (5, 6)


def test_special_tokens_are_refused_as_by_encode():
    ours, _ = pair_of("gpt2")
    with pytest.raises(ValueError, match="disallowed special token"):
        ours.encode_with_offsets("a <|endoftext|>")
    ids, offsets = ours.encode_with_offsets("a<|endoftext|>b", allowed_special={"<|endoftext|>"})
    assert ids == ours.encode("a<|endoftext|>b", allowed_special="all")
    assert offsets == [(0, 1), (1, 14), (14, 15)]
    assert ours.encode_with_offsets("") == ([], [])
