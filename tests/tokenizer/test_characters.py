"""A tokenizer of characters: one token each, every text has tokens, saved and read as any other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfast.tokenizer import Tokenizer

TEXTS = ["naïve 文字\n", "🙂 na\u0301ive", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.of_characters(TEXTS)


def test_each_character_is_one_token(tokenizer):
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert [tokenizer.decode([token]) for token in tokens] == list(text)
        assert tokenizer.count(text * 1000) == len(text) * 1000


@given(st.text())
def test_every_text_comes_back(text):
    """Trap: a character that was not seen has no token."""
    tokenizer = Tokenizer.of_characters(TEXTS)
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_a_text_in_ascii_has_a_vocabulary_of_bytes():
    tokenizer = Tokenizer.of_characters(["abc"])
    assert tokenizer.n_vocab == 257
    assert tokenizer.encode("cab<|endoftext|>", allowed_special="all") == [99, 97, 98, 256]


def test_it_is_saved_and_read_as_any_other(tokenizer, tmp_path):
    """Trap: files from which Hugging Face's library makes other ids."""
    hugging_face = pytest.importorskip("tokenizers")
    tokenizer.save(tmp_path / "json")
    tokenizer.save_vocab_and_merges(tmp_path / "merges")
    text = "".join(TEXTS) + "äöü 語 漢字"
    again = Tokenizer.load(tmp_path / "json")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(text) == tokenizer.encode(text)
    assert Tokenizer.load(tmp_path / "merges", pattern="none").encode(text) == tokenizer.encode(text)
    theirs = hugging_face.Tokenizer.from_file(str(tmp_path / "json" / "tokenizer.json"))
    assert theirs.encode(text).ids == tokenizer.encode(text)


def test_half_a_surrogate_pair_is_no_character():
    tokenizer = Tokenizer.of_characters(["a\ud800b"])
    assert tokenizer.n_vocab == 257


def test_what_is_no_list_of_texts_is_refused():
    with pytest.raises(TypeError, match="texts must be a sequence of texts"):
        Tokenizer.of_characters("abc")
    with pytest.raises(ValueError, match="is a token of ordinary text"):
        Tokenizer.of_characters(["abc"], special_tokens=["a"])
