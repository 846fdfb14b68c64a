"""A pattern that the engine does not know: the `regex` library runs it, and no text makes it run for ever."""

import itertools
import time

import pytest
import regex

from llmfast import Encoding, _bpe
from llmfast.tokenizer import Tokenizer, patterns, teaching

RANKS = {bytes([byte]): byte for byte in range(256)}
EXPONENTIAL = r"(?:a|aa)+$|\s"
TEXT = "a" * 80 + "b"


def calls(pat_str: str, text: str):
    encoding = Encoding("user's", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens={})
    return {
        "encode": lambda: encoding.encode(text),
        "encode_ordinary": lambda: encoding.encode_ordinary(text),
        "encode_to_numpy": lambda: encoding.encode_to_numpy(text),
        "encode_batch": lambda: encoding.encode_batch([text]),
        "encode_documents": lambda: encoding.encode_documents([text], append_eot=False),
        "encode_documents of bytes": lambda: encoding.encode_documents([text.encode() + b"\xff"], append_eot=False),
        "encode_iterable": lambda: list(encoding.encode_iterable([text])),
        "encode_with_unstable": lambda: encoding.encode_with_unstable(text),
        "_encode_only_native_bpe": lambda: encoding._encode_only_native_bpe(text),
        "count": lambda: encoding.count(text),
        "train": lambda: Tokenizer.train([text], vocab_size=257, pattern=pat_str),
        "teaching.train": lambda: teaching.ByteBPE.train([text], 257, pattern=pat_str),
        "teaching.encode": lambda: teaching.ByteBPE([], pat_str).encode(text),
    }


@pytest.mark.parametrize("name", calls(EXPONENTIAL, TEXT))
def test_a_pattern_that_takes_exponential_time_is_refused(name, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS_PER_PIECE", 0.2)
    expected = r"takes more than 0 seconds to find the piece at character \d+ of a text; write it without"
    with pytest.raises(ValueError, match=expected) as refused:
        calls(EXPONENTIAL, "words before \n" + TEXT)[name]()
    assert repr(EXPONENTIAL)[1:-1] in str(refused.value)


def test_the_limit_is_for_one_piece_and_not_for_the_text(monkeypatch):
    """Nor does the time count that a caller takes between two pieces."""
    monkeypatch.setattr(patterns, "SECONDS_PER_PIECE", 0.2)
    monkeypatch.setattr(patterns, "_PIECES_AT_ONCE", 50)
    assert sum(1 for _ in patterns.pieces(r"\w+|\s+", "word " * 300_000)) == 600_000
    slow = patterns.pieces(r"\w+|\s+", "one two")
    assert next(slow) == "one"
    start = time.process_time()
    while time.process_time() - start < 0.5:
        pass
    assert list(slow) == [" ", "two"]


@pytest.mark.parametrize(
    "pat_str",
    [
        r"\w+|\W", r"(?<=a)b|a|\s", r"^a|b+|.", r"\bb|.", r"\Ga|b|\s+", r"a*", r"a*?", r"a??b", r"(a)(b)?|.",
        r"\s+(?!\S)|\s+|\w", r"(?m)^.$|.", r"(?=b)|b", r"x", r"(?:a|ab)(?:b|ba|\s)*?|.", r"a+?b|\s*$|b{1,2}", r"b\b",
        r"(a)\1|.", r"(?i)A|.", r"(?i:A)+|[^a]", r"a(?=b)|(?<=ab)b|\s",
    ],
)  # fmt: skip
def test_pieces_are_those_of_one_search_through_the_text(pat_str, monkeypatch):
    """However often the search starts again, and whether pieces are matched many at once or one by one: what stands
    before them is looked at all the same."""
    text = "aab abb\nba b  ab" * 3 + "\n\nxx"
    expected = [match.span() for match in regex.finditer(pat_str, text) if match.group()]
    for at_once, one_by_one in itertools.product((1, 5, 1024), (False, True)):
        monkeypatch.setattr(patterns, "_PIECES_AT_ONCE", at_once)
        if one_by_one:
            monkeypatch.setattr(patterns, "_many_at_once", lambda pat_str, at_once: None)
        assert list(patterns.piece_spans(pat_str, text)) == expected
        assert list(patterns.pieces(pat_str, text)) == [text[slice(*span)] for span in expected]
        monkeypatch.undo()


def test_what_cannot_be_matched_many_at_once():
    """A group's number, the end of the last match and flags would mean something else."""
    usual = r"[^\r\n\p{L}]?\p{L}+|(\p{N}){1,2}|\s+(?!\S)|\s+|(?i:'s)"
    assert patterns._many_at_once(usual, 1024)
    assert patterns._many_at_once(patterns.with_gaps(usual), 1024)
    for pat_str in (r"(a)\1", r"\Ga", r"a*", r"(?i)a", r"(?P<x>a)(?P=x)", r"a\Kb", r"(?R)?a", r"a|(*FAIL)", r"\b"):
        assert not patterns._many_at_once(pat_str, 1024), pat_str


def test_a_limit_that_many_pieces_exceed_together(monkeypatch):
    """Then pieces are found one by one from there on, each with a limit of its own: none is lost or found twice."""
    monkeypatch.setattr(patterns, "SECONDS_PER_PIECE", 0.02)
    monkeypatch.setattr(patterns, "_PIECES_AT_ONCE", 10_000)
    pat_str = r"(?:a|aa){12}(?=c)|a|b"  # 2**12 ways to fail at each "a"
    text = "ab" * 30_000 + ("a" * 40 + "b") * 10
    assert "".join(patterns.pieces(pat_str, text)) == text


def test_a_pattern_that_searches_backwards_is_refused():
    """Its pieces would be encoded in the wrong order."""
    for call in ("encode",):
        with pytest.raises(ValueError, match="searches backwards"):
            calls(r"(?r)\w+|\s", "one two")[call]()
    with pytest.raises(ValueError, match="searches backwards"):
        list(patterns.pieces(r"(?r)\w+|\s", "one two"))


@pytest.mark.parametrize("pat_str", [r"\b|\w+", r"(?=x)|[a-w]+", r"(?<=a)|[a-z ]"])
def test_a_pattern_that_matches_nothing_beside_some_texts_is_refused_there(pat_str):
    """Trap: it does not match the empty text, and yet leaves characters of this one neither to itself nor to a gap."""
    assert not patterns.matches_empty_text(pat_str)
    message = "so that characters would be lost"
    text = "x-a-x ab"
    encoding = Encoding("gaps", pat_str=patterns.with_gaps(pat_str), mergeable_ranks=RANKS, special_tokens={})
    assert encoding.encode("123") == [*b"123"]
    for call in (
        lambda: Tokenizer.train([text], 257, pattern=pat_str),
        lambda: encoding.encode(text),
        lambda: encoding.encode_batch([text]),
        lambda: encoding.encode_documents([text.encode()], append_eot=False),
        lambda: list(encoding.encode_iterable([text])),
        lambda: list(patterns.pieces(patterns.with_gaps(pat_str), text)),
        lambda: list(patterns.piece_spans(patterns.with_gaps(pat_str), text)),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            call()
        assert repr(pat_str)[1:-1] in str(refused.value)


@pytest.mark.parametrize("pat_str", [r"[a-z]+", r"(?<=a)b|a|\s", r"é|\w", r"x*"])
def test_offsets_skip_what_a_pattern_leaves_out(pat_str):
    """Trap: ids taken to cover the text without gaps."""
    text = "ab, cé! aab b\u0301<|end|>a 😀\ud83d\ude00xx"
    encoding = Encoding("gaps", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens={"<|end|>": 300})
    ids, offsets = encoding.encode_with_offsets(text, allowed_special="all")
    assert ids == encoding.encode(text, allowed_special="all")
    parts = text.split("<|end|>")
    expected = []
    for i, part in enumerate(parts):
        at = sum(map(len, parts[:i])) + 7 * i
        expected += [
            (at + place, at + place + 1)
            for match in regex.finditer(pat_str, part)
            for place in range(*match.span())
            for _ in part[place].encode("utf-8", "surrogatepass")
        ]
        expected += [(at + len(part), at + len(part) + 7)] * (i + 1 < len(parts))
    assert offsets == expected


def test_another_spelling_of_a_published_pattern_runs_in_the_engine():
    """It has the same meaning to the `regex` library, too, and keeps its spelling where it is written down."""
    respelled = {
        patterns.LLAMA3: patterns.LLAMA3.replace(r"[^\r\n\p{L}\p{N}]", r"[^\n\p{N}\r\p{L}]"),
        patterns.GPT2_AS_PUBLISHED: patterns.GPT2_AS_PUBLISHED.replace("'s|'t|'re", "'t|'s|'re"),
        patterns.O200K: patterns.O200K.replace(r"[\r\n/]", r"[/\r\n]"),
    }
    for published, other in respelled.items():
        assert published != other
        encoding = Encoding("respelled", pat_str=other, mergeable_ranks=RANKS, special_tokens={})
        assert type(encoding._engine) is _bpe.Core
        assert encoding._pat_str == other
        text = "I'd've  said\n\n 1234 don't/\n/ été"
        assert [*encoding._engine.encode_ordinary(text)] == encoding._encode_only_native_bpe(text)
        assert next(iter(encoding.encode_iterable(iter(["one two", " three", *([" x"] * 10)])))) == ord("o")
