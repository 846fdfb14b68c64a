"""`Encoding` by itself: small vocabularies against the definition of byte-pair encoding, and what it refuses."""

import copy
import os
import pickle
import random
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfast import _bpe
from llmfast.tokenizer import Encoding, Tokenizer, patterns
from llmfast.tokenizer.registry import ENCODINGS, PublishedEncoding
from llmfast.tokenizer.streaming import separable_parts

BYTES = {bytes([byte]): byte for byte in range(256)}
WORDS = [
    b"he",
    b"ll",
    b"hell",
    b"hello",
    b" w",
    b"or",
    b"ld",
    b" wor",
    b" world",
    b"  ",
    b"\n\n",
    b"12",
    b"\xc3\xa9",
]
SPECIALS = {"<|endoftext|>": 300, "<|end|>": 301, "<|end|>more": 302}
ALPHABET = "abhelowrdLSTM 's\t\n\r/.,019_éſ中字ʰǅ\u0301\u3000\u00a0\u2028😀"


def make_encoding(pat_str=patterns.GPT2, specials=SPECIALS, extra=()) -> Encoding:
    ranks = BYTES | {word: 256 + i for i, word in enumerate([*WORDS, *extra])}
    return Encoding("small", pat_str=pat_str, mergeable_ranks=ranks, special_tokens=specials)


def merge_by_definition(ranks: dict[bytes, int], piece: bytes) -> list[int]:
    """Join the adjacent parts whose bytes have the lowest rank, the leftmost first, until none has a rank."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank == 1 << 30:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


REPEATED = [(2, 3, 4, 8), (3, 2, 5), (4, 2, 8, 3), (7, 2, 3), (2, 5, 9, 4, 3), (12, 3, 2, 6, 4)]


def encode_by_definition(encoding: Encoding, text: str) -> list[int]:
    ranks = encoding._mergeable_ranks
    pieces = [match.group().encode() for match in regex.finditer(encoding._pat_str, text)]
    return [i for piece in pieces for i in ([ranks[piece]] if piece in ranks else merge_by_definition(ranks, piece))]


@pytest.mark.parametrize("pat_str", sorted(patterns.NATIVE), ids=lambda pat_str: patterns.NATIVE[pat_str])
@given(text=st.text(ALPHABET, max_size=150))
@settings(max_examples=150, deadline=None)
def test_native_patterns_equal_their_regular_expressions(pat_str, text):
    expected = [match.group().encode() for match in regex.finditer(pat_str, text)]
    assert _bpe.split(text, patterns.NATIVE[pat_str]) == expected
    encoding = make_encoding(pat_str)
    assert encoding.encode_ordinary(text) == encode_by_definition(encoding, text)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_vocabulary_merges_as_defined(data):
    """Ranks in any order, tokens that merging cannot reach, pieces of any length and not UTF-8."""
    alphabet = data.draw(st.sampled_from([b"ab", b"abc", "aé中".encode(), "ёé中字".encode()]))
    token = st.lists(st.sampled_from(alphabet), min_size=2, max_size=8).map(bytes)
    tokens = [bytes([byte]) for byte in set(alphabet)] + data.draw(st.lists(token, max_size=30, unique=True))
    ranks = {word: i for i, word in enumerate(data.draw(st.permutations(tokens)))}
    core = _bpe.Core(ranks, {}, "none")
    piece = bytes(data.draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=200)))
    assert core.merge_piece(piece) == merge_by_definition(ranks, piece)


def test_deepseek_splits_three_times_in_sequence():
    """The lookahead of the last expression sees the end of a stretch as the end of text."""
    text = "x  12345 中文かなabc ,foo\n\n (bar)\x07\x07"
    pieces = [
        "x",
        "  ",
        "123",
        "45",
        " ",
        "中文かな",
        "abc",
        " ,",
        "foo",
        "\n\n",
        " (",
        "bar",
        ")",
        "\x07\x07",
    ]
    assert _bpe.split(text, "deepseek") == [piece.encode() for piece in pieces]


def test_long_runs_take_linear_time():
    """A hundred times quadratic would not come back: peers panic or overflow the stack here."""
    encoding = make_encoding(extra=[b"aa", b"aaaa", b"a" * 8, b"    "])
    for unit in ("a", " ", "\n", "helo", "中", "\t "):
        text = unit * (400_000 // len(unit))
        assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_special_tokens():
    encoding = make_encoding()
    text = "hello<|end|>more<|endoftext|>"
    with pytest.raises(ValueError, match=r"disallowed special token '<\|end\|>more'"):
        encoding.encode(text)
    assert encoding.encode(text, allowed_special="all") == [259, 302, 300]
    assert encoding.encode(text, disallowed_special=()) == encoding.encode_ordinary(text)
    assert 301 in encoding.encode(text, allowed_special={"<|end|>"}, disallowed_special=())
    with pytest.raises(ValueError, match=r"'<\|end\|>'"):
        encoding.encode(text, allowed_special={"<|end|>more"})
    with pytest.raises(ValueError, match="'ell'"):
        encoding.encode(text, allowed_special="all", disallowed_special={"ell"})
    assert encoding.is_special_token(300)
    assert not encoding.is_special_token(259)
    assert encoding.eot_token == 300
    assert encoding.n_vocab == 303


def test_surrogates_and_empty_text():
    encoding = make_encoding()
    assert encoding.encode("") == []
    assert encoding.encode("\ud83d\ude00") == encoding.encode("😀")
    assert encoding.encode("a\ud800") == encoding.encode("a\ufffd")
    assert encoding.encode_documents(["\ud800"], append_eot=False)[0].tolist() == encoding.encode("\ufffd")


def test_wrong_types_and_unknown_ids():
    encoding = make_encoding()
    methods = ("encode", "encode_ordinary", "encode_to_numpy", "encode_with_unstable", "count")
    for wrong in (None, 3, ["a"]):
        for method in methods:
            with pytest.raises(TypeError, match=f"text must be a str, got {type(wrong).__name__}$"):
                getattr(encoding, method)(wrong)
        with pytest.raises(TypeError, match=f"expected a str or bytes, got {type(wrong).__name__}$"):
            encoding.encode_single_token(wrong)
    with pytest.raises(TypeError):
        encoding.decode(["a"])
    with pytest.raises(ValueError, match="contiguous"):
        encoding.encode_documents([memoryview(b"abcd")[::2]], append_eot=False)
    for unknown in (299, 70_000):
        with pytest.raises(KeyError, match=str(unknown)):
            encoding.decode([104, unknown])
        with pytest.raises(KeyError, match=str(unknown)):
            encoding.decode_single_token_bytes(unknown)
    for no_id in (-1, 2**32, 2**64):
        for decode in (encoding.decode, encoding.decode_bytes, encoding.decode_tokens_bytes):
            with pytest.raises(OverflowError, match=str(no_id)):
                decode([no_id])
    with pytest.raises(KeyError):
        encoding.encode_single_token("nothing like it")
    with pytest.raises(TypeError, match="list"):
        encoding.encode_documents("one text")
    for wrong in ("text", None, bytearray(b"text")):
        with pytest.raises(TypeError, match=f"expected bytes, got {type(wrong).__name__}"):
            encoding._encode_bytes(wrong)
    for encode in (encoding.encode_batch, encoding.encode_ordinary_batch, encoding.encode_documents):
        with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
            encode(["a"], num_threads=0)
        assert len(encode(["a"], num_threads=None)) > 0


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({}, "got none"),
        ({b"a": 0, b"b": 0}, "id 0"),
        ({b"": 0}, "no bytes"),
        ({b"a": 1 << 24}, "16777216"),
        ({b"a": -1}, "-1"),
        ({b"a": 1 << 70}, "1180591620717411303424"),
    ],
)
def test_damaged_vocabularies(ranks, message):
    with pytest.raises(ValueError, match=message):
        Encoding("damaged", pat_str=patterns.GPT2, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize(("pat_str", "message"), [("(", "'\\(' is no regular expression"), ("", "pattern is empty")])
def test_patterns_that_are_none(pat_str, message):
    with pytest.raises(ValueError, match=message):
        Encoding("x", pat_str=pat_str, mergeable_ranks=BYTES, special_tokens={})


def test_an_empty_special_token():
    with pytest.raises(ValueError, match="the special token 300 is the empty string"):
        make_encoding(specials={"": 300})


def test_a_missing_byte_is_named_when_it_is_needed():
    encoding = Encoding("letters", pat_str=patterns.GPT2, mergeable_ranks={b"a": 0, b"b": 1}, special_tokens={})
    assert encoding.encode("abba") == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="b'c'"):
        encoding.encode("abc")


def test_decoding():
    encoding = make_encoding()
    ids = encoding.encode("hello world é")
    assert encoding.decode(ids) == "hello world é"
    for sequence in (
        tuple(ids),
        np.array(ids),
        np.array(ids, np.uint16),
        np.array(ids * 2, np.int32)[::2],
        range(97, 100),
    ):
        assert encoding.decode_bytes(sequence) == b"".join(encoding.decode_tokens_bytes(sequence))
    assert encoding.decode([0xC3]) == "\ufffd"
    assert encoding.decode([0xC3], errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        encoding.decode([0xC3], errors="strict")
    assert encoding.decode_with_offsets(encoding.encode("helloé中")) == ("helloé中", [0, 5, 6, 6, 6])
    assert encoding.decode_batch([ids, []]) == ["hello world é", ""]


@given(st.lists(st.text(ALPHABET, max_size=40), max_size=12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_documents(texts, threads):
    encoding = make_encoding()
    ids, offsets = encoding.encode_documents(texts, num_threads=threads)
    assert ids.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert len(offsets) == len(texts) + 1
    for text, (start, end) in zip(texts, pairwise(offsets), strict=True):
        assert ids[start:end].tolist() == [*encoding.encode_ordinary(text), 300]
    assert encoding.encode_ordinary_batch(texts) == [encoding.encode_ordinary(text) for text in texts]


def test_a_long_document_is_cut_only_between_pieces():
    random.seed(5)
    text = "".join(random.choice(["hello", " world", "\n\n", "12345", "  ", "'s", "中"]) for _ in range(300_000))
    for pat_str in (patterns.GPT2, patterns.CL100K, patterns.O200K):
        encoding = make_encoding(pat_str)
        ids, offsets = encoding.encode_documents([text, "hello"], append_eot=False, num_threads=3)
        assert ids[: offsets[1]].tolist() == encoding.encode_ordinary(text)
        assert encoding.count(text) == offsets[1]


@pytest.mark.parametrize("pat_str", [patterns.CL100K, patterns.WHOLE, r"\w+|\W+"])
def test_bytes_that_are_not_utf8_come_back(pat_str):
    encoding = make_encoding(pat_str)
    for raw in (b"\xff\xfehello \x80", b"\xe4\xb8", bytes(range(256)) * 3):
        ids, _ = encoding.encode_documents([raw], append_eot=False)
        assert encoding.decode_bytes(ids) == raw
        assert encoding.decode_bytes(encoding._encode_bytes(raw)) == raw


@given(st.lists(st.text(ALPHABET, max_size=30), max_size=20))
@settings(max_examples=60, deadline=None)
def test_streaming_equals_the_whole(chunks):
    for pat_str in (patterns.GPT2, patterns.O200K, patterns.WHOLE, r"\w+|\W+"):
        encoding = make_encoding(pat_str)
        assert list(encoding.encode_iterable(chunks)) == encoding.encode_ordinary("".join(chunks))


CUT = [*ALPHABET, "。", "、", "한", "\n\n", "  ", "\u3000", "中文", "abc ", "/", "\x1c", "\x85"]


@given(st.lists(st.sampled_from(CUT), max_size=30).map("".join), st.data())
@settings(max_examples=150, deadline=None)
def test_text_is_cut_where_every_pattern_cuts(text, data):
    """A chunk ends at a place that starts a piece whatever the text around it is."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]
    for pat_str, name in patterns.NATIVE.items():
        joined = list(separable_parts(chunks, pat_str=pat_str))
        assert "".join(joined) == text
        assert [piece for part in joined for piece in _bpe.split(part, name)] == _bpe.split(text, name)


@pytest.mark.parametrize("unit", ["the cat ", "кошка сидит, ", "猫がいる。", "고양이가 있다. ", "قطة جالسة ", "line\n"])
def test_streaming_keeps_little_text(unit):
    """Whatever the language; text with no letters of English was once kept to its end, and searched each time."""
    chunk = unit * (20_000 // len(unit))
    encoding = make_encoding(patterns.O200K)
    parts = list(separable_parts([chunk] * 50, pat_str=patterns.O200K))
    assert max(map(len, parts)) < 2 * len(chunk)
    tokens = sum(1 for _ in encoding.encode_iterable([chunk] * 3))
    assert tokens == encoding.count(chunk * 3)


@given(st.text(ALPHABET, max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_pattern_of_your_own(text):
    encoding = make_encoding(r"\p{L}+|[^\p{L}\s]|\s+")
    assert encoding.encode_ordinary(text) == encode_by_definition(encoding, text)
    assert encoding.decode(encoding.encode(text + "<|end|>", allowed_special="all")) == text + "<|end|>"
    assert encoding.encode_to_numpy(text).tolist() == encoding.encode(text)
    assert encoding.encode_batch([text, "<|end|>"], disallowed_special=())[0] == encoding.encode(text)
    with pytest.raises(ValueError, match="disallowed"):
        encoding.encode(text + "<|end|>")


def test_pickle_and_copy():
    encoding = make_encoding()
    for twin in (pickle.loads(pickle.dumps(encoding)), copy.deepcopy(encoding)):
        assert twin.encode("hello <|end|>", allowed_special="all") == encoding.encode(
            "hello <|end|>", allowed_special="all"
        )
        assert repr(twin) == "<Encoding 'small'>"


def test_a_published_encoding_is_pickled_by_its_registered_name():
    """Trap: a name that one package registers for an encoding that calls itself otherwise."""
    parts = {"pat_str": patterns.GPT2, "mergeable_ranks": make_encoding()._mergeable_ranks, "special_tokens": {}}
    encoding = PublishedEncoding("registered", name="small", **parts)
    ENCODINGS["registered"] = encoding
    try:
        for twin in (pickle.loads(pickle.dumps(encoding)), copy.copy(encoding), copy.deepcopy(encoding)):
            assert twin is encoding
        assert len(pickle.dumps(encoding)) < 200
        added = encoding.with_added_tokens(["<|more|>"])
        assert pickle.loads(pickle.dumps(added)).special_tokens_set == {"<|more|>"}
        assert pickle.loads(pickle.dumps(Tokenizer.of(encoding))).encode("hello") == [259]
    finally:
        del ENCODINGS["registered"]


def test_a_thread_that_runs_on_at_exit_is_no_leak():
    """The program ends in silence, whatever its daemon threads hold."""
    program = """
import threading, time
from llmfast.tokenizer import Tokenizer
tokenizer = Tokenizer.train(["ab"] * 9, 257, special_tokens=())
threading.Thread(target=lambda: (time.sleep(60), tokenizer), daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_threads_work_after_a_fork():
    """A child that inherits the encoding, after the parent used threads, uses threads of its own."""
    encoding = make_encoding()
    texts = ["hello world " * 5000] * 8
    expected = encoding.encode_documents(texts, num_threads=4)[0]
    child = os.fork()
    if child == 0:
        same = np.array_equal(encoding.encode_documents(texts, num_threads=4)[0], expected)
        os._exit(0 if same and encoding.encode_batch(texts)[0] == encoding.encode(texts[0]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_many_threads_share_one_encoding():
    random.seed(6)
    encoding, alone = make_encoding(), make_encoding()
    texts = ["".join(random.choices(ALPHABET, k=3000)) for _ in range(20)]
    expected = [alone.encode_ordinary(text) for text in texts]
    results = {}

    def work(which):
        results[which] = [encoding.encode_ordinary(text) for text in texts]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [expected] * 4


@pytest.mark.parametrize("lengths", REPEATED)
def test_one_repeated_character(lengths):
    """Runs are merged as runs; where ranks do not follow lengths, a pair that comes about may go before the others."""
    ranks = BYTES | {b"x" * length: 256 + i for i, length in enumerate(lengths)}
    encoding = Encoding("runs", pat_str=patterns.GPT2, mergeable_ranks=ranks, special_tokens={})
    for length in (64, 65, 66, 67, 127, 128, 129, 200, 301):
        assert encoding.encode("x" * length) == merge_by_definition(ranks, b"x" * length)
    assert encoding.decode(encoding.encode("x" * 10**6)) == "x" * 10**6
