"""Wrong arguments: refused alike by every class and for every pattern, in a sentence that names the argument."""

import numpy as np
import pytest

from llmfast.tokenizer import Encoding, Tokenizer, patterns
from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.text_rules import TextRules

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"he": 256}


def encodings():
    """One of each kind: on a pattern of the engine, on one of another kind, trained, with rules of text."""
    specials = {"<|endoftext|>": 300}
    yield Encoding("engine", pat_str=patterns.GPT2, mergeable_ranks=RANKS, special_tokens=specials)
    yield Encoding("regex", pat_str=r"\w+|\W+", mergeable_ranks=RANKS, special_tokens=specials)
    yield Tokenizer.train(["low low low lower"], 260)
    end = AddedToken("<|endoftext|>", 300, lstrip=True)
    rules = TextRules(added=(end, AddedToken("<think>", 301, special=False)), normalizer={"type": "NFC"})
    yield Tokenizer("rules", pat_str=patterns.GPT2, mergeable_ranks=RANKS, special_tokens=specials, rules=rules)


@pytest.fixture(params=list(encodings()), ids=["engine", "regex", "trained", "rules"])
def encoding(request):
    return request.param


NO_TEXT = [None, b"abc", 3, 3.5, ["a"], {"a": 1}, np.array(["a"]), object()]
NO_TEXTS = [None, 3, 3.5, "abc", b"abc", bytearray(b"abc"), {"a": 1}, {"a"}]
NO_IDS = [None, "abc", b"abc", bytearray(b"abc"), 3, 3.5, {1: 2}, {1}]
HOLD_NO_IDS = [[3.5], ["a"], [None], [[1]], [b"a"], np.array([1.5]), np.array([[1, 2]]), [1, "2"]]
ONE_TEXT = [
    "encode",
    "encode_ordinary",
    "encode_to_numpy",
    "encode_with_unstable",
    "encode_with_offsets",
    "count",
]
MANY_TEXTS = {"encode_batch": "text", "encode_ordinary_batch": "text", "encode_documents": "documents"}
WITH_SPECIALS = ["encode", "encode_to_numpy", "encode_with_unstable", "encode_with_offsets"]
DECODE = ["decode", "decode_bytes", "decode_tokens_bytes", "decode_with_offsets"]


@pytest.mark.parametrize("wrong", NO_TEXT, ids=range(len(NO_TEXT)))
@pytest.mark.parametrize("method", ONE_TEXT)
def test_one_text(encoding, method, wrong):
    with pytest.raises(TypeError, match=f"^text must be a str, got {type(wrong).__name__}$"):
        getattr(encoding, method)(wrong)


@pytest.mark.parametrize("wrong", NO_TEXTS, ids=range(len(NO_TEXTS)))
@pytest.mark.parametrize(("method", "name"), MANY_TEXTS.items())
def test_many_texts(encoding, method, name, wrong):
    """Trap: one text is a sequence of texts, too, of its characters."""
    with pytest.raises(TypeError, match=f"^{name} must be a sequence of texts, got .*{type(wrong).__name__}"):
        getattr(encoding, method)(wrong)


@pytest.mark.parametrize(("method", "name"), MANY_TEXTS.items())
def test_the_wrong_one_of_many_texts_is_named(encoding, method, name):
    for wrong in (None, 3, ["a"]):
        with pytest.raises(TypeError, match=rf"^{name}\[1\] must be a str.*, got {type(wrong).__name__}$"):
            getattr(encoding, method)(["a", wrong])


@pytest.mark.parametrize("method", [*MANY_TEXTS, "decode_batch", "decode_bytes_batch"])
def test_threads(encoding, method):
    given = [[1]] if method.startswith("decode") else ["a"]
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)):
        with pytest.raises(error, match=r"^num_threads must be "):
            getattr(encoding, method)(given, num_threads=wrong)


@pytest.mark.parametrize("name", ["allowed_special", "disallowed_special"])
@pytest.mark.parametrize("method", [*WITH_SPECIALS, "encode_batch", "encode_iterable"])
def test_special_tokens(encoding, method, name):
    """Traps: in a str other than "all", every part of it would be a member; bytes are never one."""
    given = ["a"] if method in ("encode_batch", "encode_iterable") else "a"
    for wrong in (None, 3, "<|endoftext|>", b"x", {"<|endoftext|>": 1}):
        with pytest.raises(TypeError, match=f'^{name} must be "all" or a set of special tokens, got'):
            getattr(encoding, method)(given, **{name: wrong})
    with pytest.raises(TypeError, match=f"^each special token in {name} must be a str, got bytes"):
        getattr(encoding, method)(given, **{name: {b"<|endoftext|>"}})
    for right in ((), [], ("<|endoftext|>",), frozenset(["<|endoftext|>"]), np.array(["<|endoftext|>"])):
        getattr(encoding, method)(given, **{name: right})


@pytest.mark.parametrize("method", DECODE)
def test_ids(encoding, method):
    """Trap: the bytes of a text are integers, too."""
    decode = getattr(encoding, method)
    for wrong in NO_IDS:
        with pytest.raises(TypeError, match=f"^tokens must be a sequence of token ids, got {type(wrong).__name__}$"):
            decode(wrong)
    for wrong in HOLD_NO_IDS:
        with pytest.raises(
            TypeError, match=r"^(tokens must be token ids, .*tokens\[[01]\] is|token must be an int, got)"
        ):
            decode(wrong)
    for right in (
        [104, 101],
        (104, 101),
        np.array([104, 101]),
        np.array([104, 101], np.uint8),
        iter([104, 101]),
    ):
        assert decode(right) == decode([104, 101])


def test_errors_are_named_before_they_are_needed(encoding):
    """Trap: an error handler is looked up only where bytes are at fault."""
    with pytest.raises(ValueError, match=r"^errors must name an error handler.*'bogus'"):
        encoding.decode([104], errors="bogus")
    with pytest.raises(TypeError, match=r"^errors must be a str, got NoneType"):
        encoding.decode([104], errors=None)
    assert encoding.decode([104, 0xE4], errors="ignore") == "h"


def test_batches_of_ids(encoding):
    for decode in (encoding.decode_batch, encoding.decode_bytes_batch):
        with pytest.raises(TypeError, match=r"^batch must be a sequence"):
            decode(b"abc")
        with pytest.raises(TypeError, match=r"^tokens must be a sequence of token ids, got int"):
            decode([1, 2])


def test_no_sentence_speaks_of_the_engine(encoding):
    """Trap: the signatures of C++ functions, which say nothing to a caller."""
    for method in (*ONE_TEXT, *MANY_TEXTS, *DECODE, "decode_single_token_bytes", "encode_single_token"):
        for wrong in (None, 3.5, object(), [None]):
            with pytest.raises((TypeError, KeyError)) as raised:
                getattr(encoding, method)(wrong)
            assert "incompatible" not in str(raised.value)
            assert "nanobind" not in str(raised.value)


def test_a_batch_is_encoded_in_groups(monkeypatch):
    """The ids of all texts are not held beside the lists made of them."""
    from llmfast.tokenizer import encoding as module

    monkeypatch.setattr(module, "_GROUP_CHARACTERS", 10)
    for encoding in encodings():
        texts = ["hello", "x" * 30, "", "he", "h" * 9, "he"]
        assert encoding.encode_batch(texts) == [encoding.encode(text) for text in texts]
        assert encoding.encode_batch(iter(texts)) == encoding.encode_ordinary_batch(tuple(texts))
        assert encoding.encode_batch([]) == []
