"""Text and tokens that come in parts: equal to the whole, with little memory, and never half a character."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfast.tokenizer import Encoding, Tokenizer, patterns
from llmfast.tokenizer.huggingface.added_tokens import AddedToken
from llmfast.tokenizer.streaming import separable_parts
from llmfast.tokenizer.text_rules import TextRules

BYTES = {bytes([byte]): byte for byte in range(256)}
WORDS = [b"he", b"ll", b"hello", b" w", b" world", b"  ", b"\n\n", "é".encode(), b"<|", b"|>"]
# One begins with another, one overlaps itself, one has a place in it where every pattern splits.
SPECIALS = {"<|end|>": 300, "<|end|>more": 301, "abab": 302, "<a b>": 303, "\n": 304}


def make_encoding(pat_str=patterns.GPT2, specials=SPECIALS) -> Encoding:
    ranks = BYTES | {word: 256 + i for i, word in enumerate(WORDS)}
    return Encoding("small", pat_str=pat_str, mergeable_ranks=ranks, special_tokens=specials)


PIECES = [
    "<|",
    "end",
    "|>",
    "more",
    "ab",
    "<a",
    " b>",
    "a",
    "b",
    " ",
    "\n",
    "é",
    "中",
    "hello",
    "'s",
    "1",
    "😀",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
PATTERNS = [patterns.GPT2, patterns.CL100K, patterns.O200K, patterns.DEEPSEEK, patterns.WHOLE, r"\w+|\W+"]


def cut(data, text):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:stop] for start, stop in itertools.pairwise([0, *places, len(text)])]


@given(TEXTS, st.sets(st.sampled_from(sorted(SPECIALS))), st.data())
@settings(max_examples=150, deadline=None)
def test_specials_in_any_chunks_are_those_of_the_whole(text, allowed, data):
    """Traps: a special token over several chunks, a longer one that begins as another ends, one cut inside."""
    for pat_str in PATTERNS:
        encoding = make_encoding(pat_str)
        for which in (allowed, "all"):
            found = list(encoding.encode_iterable(cut(data, text), allowed_special=which))
            assert found == encoding.encode(text, allowed_special=which, disallowed_special=())
        assert list(encoding.encode_iterable(cut(data, text))) == encoding.encode_ordinary(text)


RULES = {
    "white space beside them": [
        AddedToken("<|end|>", 300, lstrip=True),
        AddedToken("abab", 302, rstrip=True),
    ],
    "words only": [AddedToken("abab", 302, single_word=True), AddedToken("<|end|>", 300)],
    "not special": [AddedToken("<a b>", 303, special=False), AddedToken("<|end|>", 300)],
    "normalized": [
        AddedToken("éa", 305, normalized=True, special=False),
        AddedToken("<a b>", 303, normalized=True),
    ],
}


@given(TEXTS, st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}], ids=["", "NFC"])
def test_rules_of_text_are_those_of_the_whole(normalizer, rules, text, data):
    """Trap: a cut beside a special token that looks at what stands there, or in one that normalizing makes."""
    added = tuple(RULES[rules])
    specials = {token.content: token.id for token in added if token.special}
    ranks = BYTES | {word: 256 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(
        "rules", pat_str=patterns.GPT2, mergeable_ranks=ranks, special_tokens=specials,
        rules=TextRules(added=added, normalizer=normalizer),
    )  # fmt: skip
    text = text.replace("é", "e\u0301")
    for allowed in ((), "all"):
        expected = tokenizer.encode(text, allowed_special=allowed, disallowed_special=())
        assert list(tokenizer.encode_iterable(cut(data, text), allowed_special=allowed)) == expected


@given(TEXTS, st.sets(st.sampled_from(sorted(SPECIALS))), st.data())
@settings(max_examples=100, deadline=None)
def test_disallowed_text_is_found_over_chunks(text, allowed, data):
    encoding = make_encoding()

    def outcome(call):
        try:
            return list(call())
        except ValueError as error:
            return str(error)

    for disallowed in ("all", {"<|end|>", "no special token", "bab"}):
        options = {"allowed_special": allowed, "disallowed_special": disallowed}
        expected = outcome(lambda options=options: encoding.encode(text, **options))
        assert outcome(lambda options=options: encoding.encode_iterable(cut(data, text), **options)) == expected


@pytest.mark.parametrize("pat_str", [patterns.O200K, patterns.WHOLE, r"\w+|\W+"])
@pytest.mark.parametrize("unit", ["<|end|>", "x<|end|>", "abab", "ab"])
def test_text_of_special_tokens_is_not_kept(pat_str, unit):
    """Trap: special tokens without a place between them where the pattern splits."""
    chunks = itertools.repeat(unit * 100, 200)
    parts = separable_parts(chunks, pat_str=pat_str, found=frozenset(SPECIALS))
    assert max(map(len, parts)) <= 2 * 100 * len(unit)


def test_chunks_are_read_no_sooner_than_needed():
    read = []

    def chunks():
        for i in range(5):
            read.append(i)
            yield "hello world "

    ids = make_encoding().encode_iterable(chunks())
    assert not read
    next(ids)
    assert len(read) == 1


def test_what_is_no_chunk_is_named():
    encoding = make_encoding()
    with pytest.raises(TypeError, match="chunks must be an iterable of str, got int"):
        encoding.encode_iterable(3)
    with pytest.raises(TypeError, match=r"chunks\[1\] must be a str, got bytes"):
        list(encoding.encode_iterable(["a", b"b"]))
    with pytest.raises(TypeError, match="allowed_special must be"):
        encoding.encode_iterable(["a"], allowed_special="some")


# ---- Decoding

# First and last bytes of every class that UTF-8 has: ASCII, continuations, leads of two to four bytes, and none.
EDGES = [
    0x41,
    0x80,
    0x8F,
    0x90,
    0x9F,
    0xA0,
    0xBF,
    0xC1,
    0xC3,
    0xE0,
    0xE4,
    0xED,
    0xEF,
    0xF0,
    0xF3,
    0xF4,
    0xF5,
    0xFF,
]


def streamed(encoding, tokens):
    decoder = encoding.stream_decoder()
    parts = [decoder.push(token) for token in tokens]
    return [*parts, decoder.finish()]


def test_every_sequence_of_bytes_streams_as_it_decodes():
    """Traps: overlong forms, surrogates, characters cut off in the middle, continuations without a lead."""
    encoding = make_encoding()
    for length in (1, 2, 3):
        for tokens in itertools.product(EDGES, repeat=length):
            assert "".join(streamed(encoding, tokens)) == encoding.decode(list(tokens)), tokens
    draw = random.Random(0)
    for _ in range(20_000):
        tokens = draw.choices(EDGES, k=draw.randint(4, 9))
        assert "".join(streamed(encoding, tokens)) == encoding.decode(tokens), tokens


def test_no_part_holds_half_a_character():
    text = "né 中文 😀👩‍👩‍👧 <|end|>"
    for encoding in (make_encoding(), Tokenizer.train(["abc abc"], 258)):
        tokens = [*text.encode()]
        parts = streamed(encoding, tokens)
        assert "".join(parts) == text
        assert parts[:4] == ["n", "", "é", " "]
        assert "\ufffd" not in "".join(parts)


def test_a_decoder_is_as_new_when_it_is_finished():
    encoding = make_encoding()
    decoder = encoding.stream_decoder()
    assert (decoder.push(0xE4), decoder.finish()) == ("", "\ufffd")
    assert (decoder.push(0xB8), decoder.finish()) == ("\ufffd", "")
    assert [decoder.push(token) for token in (0xE4, 0xB8)] == ["", ""]
    with pytest.raises(KeyError, match="299"):
        decoder.push(299)
    assert decoder.push(0xAD) == "中"  # an unknown id has changed nothing
    assert decoder.push(300) == "<|end|>"
    with pytest.raises(TypeError, match="token must be an int, got list"):
        decoder.push([1])
