"""Token for token and exception for exception what tiktoken does, on its own vocabularies."""

import importlib
import inspect
import pickle
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_data

import llmfast.tokenizer

NAMES = ["gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base"]
# Every kind of character that a pattern tells apart, and what they make together.
CHARACTERS = [
    *"aZsStTlLvVeErRdDmM'/.,!-_=09 \t\n\r\x0b\x0c\x1c\x00éÉſKЖж中字のʰǅ½٣😀",
    *"\u0301\u093e\u00a0\u2028\u3000\u0085\u200d\ufe0f\ufffd",
    *"\u202f\u1680\u2003",
]
PIECES = CHARACTERS + [
    "'s",
    "'LL",
    "'re",
    "I'm",
    "  ",
    "    ",
    "\n\n",
    "\r\n",
    "://",
    "12345678",
    "camelCase",
    "HTTPServer",
    "```\n",
    "hello",
    " world",
    " слово",
    "東京都",
    "안녕",
    "<|endoftext|>",
    "👍🏽",
]


@pytest.fixture(autouse=True, scope="module")
def rank_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
        yield


def both(name: str):
    return llmfast.tokenizer.get_encoding(name), tiktoken.get_encoding(name)


def texts():
    for path in sorted(shared_data("text").glob("*.txt")):
        yield path.read_text(encoding="utf-8")[:400_000]
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    yield "".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)[:1_500_000]


@pytest.mark.parametrize("name", NAMES)
def test_texts(name):
    ours, theirs = both(name)
    for text in texts():
        ids = theirs.encode_ordinary(text)
        assert ours.encode_ordinary(text) == ids
        assert ours.encode_documents([text], append_eot=False)[0].tolist() == ids
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_every_code_point(name):
    """Each alone, first, inside and last in a piece; 2,000 at a time."""
    ours, theirs = both(name)
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    planes = points[:0x30000] + points[0xE0000:0xE0400] + points[-0x400:]  # the rest has no characters
    for start in range(0, len(planes), 2000):
        text = "".join(f"{c} {c}a'{c}{c}A{c}\n1{c}2." for c in planes[start : start + 2000])
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("name", NAMES)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=120), repeats=st.integers(1, 80), at=st.integers(0, 119))
@settings(max_examples=120, deadline=None)
def test_strings(name, pieces, repeats, at):
    ours, theirs = both(name)
    text = "".join(piece * (repeats if i == at else 1) for i, piece in enumerate(pieces))
    ids = theirs.encode(text, disallowed_special=())
    assert ours.encode(text, disallowed_special=()) == ids
    assert ours.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")
    assert ours.encode_to_numpy(text, disallowed_special=()).tolist() == ids
    assert ours.decode_with_offsets(ids) == theirs.decode_with_offsets(ids)
    assert ours._encode_single_piece(text or "a") == theirs._encode_single_piece(text or "a")


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
@given(raw=st.binary(max_size=60), text=st.text(st.sampled_from(CHARACTERS), max_size=20), cut=st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_bytes_that_are_not_utf8(name, raw, text, cut):
    ours, theirs = both(name)
    for one in (raw, text.encode()[cut:], text.encode()[: -cut or None] + raw):
        assert ours._encode_bytes(one) == theirs._encode_bytes(one)
        if one:
            assert ours._encode_single_piece(one) == theirs._encode_single_piece(one)
        ids = theirs._encode_bytes(one)
        assert ours.decode_bytes(ids) == theirs.decode_bytes(ids)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
@pytest.mark.parametrize("text", ["hello fanta", "", "x \n ", "a  ", "\n\n", "we'", "中", "<|endoftext|>", " zzqj"])
def test_unstable(name, text):
    ours, theirs = both(name)
    stable, completions = ours.encode_with_unstable(text, allowed_special="all")
    expected = theirs.encode_with_unstable(text, allowed_special="all")
    assert stable == expected[0]
    assert sorted(completions) == sorted(expected[1])


@given(
    specials=st.lists(st.text("<a>b ", min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    text=st.text("<a>b c", max_size=60),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_special_tokens_that_overlap(specials, text, data):
    """Each other and ordinary text; of two where one begins like the other, tiktoken takes either."""
    specials = [one for one in specials if not any(one != other and one.startswith(other) for other in specials)]
    arguments = {
        "pat_str": r"\s+|\S+",
        "mergeable_ranks": {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"<a": 257},
        "special_tokens": {one: 300 + i for i, one in enumerate(specials)},
    }
    ours, theirs = (each.Encoding("small", **arguments) for each in (llmfast.tokenizer, tiktoken))
    allowed = data.draw(st.sets(st.sampled_from(specials)))
    text += data.draw(st.sampled_from(specials))
    for some in (allowed, "all"):
        ids = theirs.encode(text, allowed_special=some, disallowed_special=())
        assert ours.encode(text, allowed_special=some, disallowed_special=()) == ids
        assert ours.encode_batch([text], allowed_special=some, disallowed_special=()) == [ids]

    def outcome(encoding):
        try:
            return encoding.encode(text, allowed_special=allowed, disallowed_special=set(specials) - allowed)
        except ValueError as error:
            return str(error)

    assert outcome(ours) == outcome(theirs)


def test_long_pieces():
    random.seed(11)
    ours, theirs = both("cl100k_base")
    for alphabet in (
        "a",
        "ab",
        "etaoin",
        "abcdefghijklmnopqrstuvwxyz",
        "-=",
        "ACGT",
        "中文字的一是不",
        "абвгд",
        "😀👍🏽",
    ):
        for length in (60, 70, 300, 5000):
            text = "".join(random.choices(alphabet, k=length))
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    assert len(ours.encode_ordinary(" " * 10**6)) > 0  # tiktoken's engine panics


CALLS = [
    lambda e: e.encode("<|endoftext|>"),
    lambda e: e.encode("a<|endoftext|>", disallowed_special={"<|endoftext|>"}),
    lambda e: e.encode("<|fim_prefix|><|endoftext|>", allowed_special={"<|endoftext|>"}),
    lambda e: e.encode("plain text", disallowed_special={"ain"}),
    lambda e: e.encode_to_numpy("<|endoftext|>"),
    lambda e: e.encode_batch(["a", "<|endoftext|>"]),
    lambda e: e.encode_with_unstable("<|endoftext|>"),
    lambda e: e.encode(None),
    lambda e: e.encode(b"bytes"),
    lambda e: e.encode_ordinary(3),
    lambda e: e.encode_ordinary(b"bytes"),
    lambda e: e.encode_batch([b"bytes"]),
    lambda e: e.encode_batch([None]),
    lambda e: e.encode_ordinary_batch([3]),
    lambda e: e.encode_ordinary(None),
    lambda e: e.encode_to_numpy(None),
    lambda e: e.encode_with_unstable(None),
    lambda e: e._encode_bytes("text"),
    lambda e: e._encode_single_piece(3),
    lambda e: e.encode_single_token(3),
    lambda e: e.encode_single_token("no such token"),
    lambda e: e.decode([10**7]),
    lambda e: e.decode_bytes([10**7]),
    lambda e: e.decode_single_token_bytes(10**7),
    lambda e: e.decode_tokens_bytes([1, 10**7]),
    lambda e: e.decode([-1]),
    lambda e: e.decode(["a"]),
    lambda e: e.decode(3),
    lambda e: e.decode([e.encode_single_token(b"\xe4")], errors="strict"),
    lambda e: e.decode_with_offsets([e.encode_single_token(b"\xe4")]),
    lambda e: e.is_special_token("a"),
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_exceptions(call):
    ours, theirs = both("cl100k_base")
    with pytest.raises(BaseException) as expected:
        call(theirs)
    with pytest.raises(expected.type) as got:
        call(ours)
    if expected.type is ValueError:
        assert str(got.value) == str(expected.value)


def test_the_whole_surface():
    ours, theirs = both("cl100k_base")
    missing = [name for name in dir(theirs) if not name.startswith("__") and not hasattr(ours, name)]
    assert missing == []
    assert ours.name == theirs.name
    assert ours.n_vocab == theirs.n_vocab
    assert ours.max_token_value == theirs.max_token_value
    assert ours.special_tokens_set == theirs.special_tokens_set
    assert ours.eot_token == theirs.eot_token
    assert ours.token_byte_values() == theirs.token_byte_values()
    assert ours._encode_only_native_bpe("hello  world's") == theirs._encode_only_native_bpe("hello  world's")
    assert ours.encode_single_token("<|endoftext|>") == theirs.encode_single_token("<|endoftext|>")
    assert repr(ours) == repr(theirs)
    assert pickle.loads(pickle.dumps(ours)).__dict__ is ours.__dict__
    for name in (
        "Encoding",
        "encoding_for_model",
        "encoding_name_for_model",
        "get_encoding",
        "list_encoding_names",
    ):
        assert hasattr(llmfast.tokenizer, name)
    assert set(dir(tiktoken)) - {"_tiktoken"} <= set(dir(llmfast.tokenizer))
    assert llmfast.tokenizer.core.Encoding is llmfast.tokenizer.Encoding


@pytest.mark.parametrize("name", [name for name in vars(tiktoken.Encoding) if not name.startswith("__")])
def test_signatures(name):
    """The same parameters, of the same kinds, with defaults that mean the same."""
    ours, theirs = (getattr(each.Encoding, name) for each in (llmfast.tokenizer, tiktoken))
    if not callable(theirs):
        assert type(ours) is type(theirs)
        return

    def parameters(function):
        empty_set = {frozenset(): "{}", inspect.Parameter.empty: "none"}
        return [
            (
                each.name,
                each.kind,
                "{}" if each.default == set() else empty_set.get(each.default, each.default),
            )
            for each in inspect.signature(function).parameters.values()
        ]

    assert parameters(ours) == parameters(theirs)


def test_registry():
    assert llmfast.tokenizer.list_encoding_names() == tiktoken.list_encoding_names()
    assert llmfast.tokenizer.get_encoding("gpt2") is llmfast.tokenizer.get_encoding("gpt2")
    assert llmfast.tokenizer.encoding_for_model("gpt-4o").name == "o200k_base"
    assert llmfast.tokenizer.encoding_name_for_model("gpt-4") == "cl100k_base"
    assert importlib.import_module("llmfast.tokenizer.model").MODEL_TO_ENCODING == tiktoken.model.MODEL_TO_ENCODING
    with pytest.raises(KeyError):
        llmfast.tokenizer.encoding_for_model("no-such-model")
    with pytest.raises(ValueError, match="Unknown encoding no_such"):
        llmfast.tokenizer.get_encoding("no_such")
    with pytest.raises(ValueError, match="Expected a string"):
        llmfast.tokenizer.get_encoding(3)


PLUGIN = """
def mine():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    return {"name": "mine", "pat_str": r"\\S+|\\s+", "mergeable_ranks": ranks, "special_tokens": {"<e>": 257}}
"""


@pytest.mark.parametrize(
    ("plugin", "prints"),
    [
        (PLUGIN + 'ENCODING_CONSTRUCTORS = {"mine": mine}', "mine True [256, 99, 257] True True"),
        (PLUGIN, "ValueError tiktoken plugin tiktoken_ext.mine does not define ENCODING_CONSTRUCTORS"),
        (
            PLUGIN + 'ENCODING_CONSTRUCTORS = {"gpt2": mine}',
            "ValueError Duplicate encoding name gpt2 in tiktoken plugin tiktoken_ext.",
        ),
    ],
)
def test_plugins(plugin, prints, tmp_path):
    """Encodings that other packages put into the namespace `tiktoken_ext`; a faulty one is named, each time."""
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "mine.py").write_text(plugin)
    program = f"""
import sys, copy, pickle
sys.path.append({str(tmp_path)!r})
import llmfast.tokenizer as tiktoken
for attempt in range(2):
    try:
        known = "mine" in tiktoken.list_encoding_names()
        mine = tiktoken.get_encoding("mine")
        ids = mine.encode("abc<e>", allowed_special="all")
        print(mine.name, known, ids, len(pickle.dumps(mine)) < 100, copy.deepcopy(mine).__dict__ is mine.__dict__)
    except ValueError as error:
        print("ValueError", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[0].startswith(prints)


def test_a_damaged_rank_file_is_refused(tmp_path, monkeypatch):
    """The hash is checked; the file is then fetched again, which fails without a network."""
    name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    content = (shared_data("tiktoken") / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"IQ== 0", b"IQ== 1", 1))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: b"not the file")
    monkeypatch.setitem(llmfast.tokenizer.registry.ENCODINGS, "cl100k_base", None)
    llmfast.tokenizer.registry.ENCODINGS.pop("cl100k_base")
    with pytest.raises(ValueError, match="Hash mismatch"):
        llmfast.tokenizer.get_encoding("cl100k_base")


def test_the_engine_that_others_reach_for():
    """``_core_bpe`` has the methods of tiktoken's, with their arguments."""
    ours, theirs = (encoding._core_bpe for encoding in both("cl100k_base"))
    assert [name for name in dir(theirs) if not name.startswith("__") and not hasattr(ours, name)] == []
    text, allowed = "hello <|endoftext|> wörld  ", {"<|endoftext|>"}
    for method, arguments in {
        "encode_ordinary": (text,),
        "encode": (text, allowed),
        "encode_single_token": (b"<|endoftext|>",),
        "encode_single_piece": (b"hello world",),
        "_encode_bytes": (b"hello \xff",),
        "decode_bytes": ([15339, 100257],),
        "decode_single_token_bytes": (15339,),
        "token_byte_values": (),
    }.items():
        assert getattr(ours, method)(*arguments) == getattr(theirs, method)(*arguments), method
    assert ours.encode(text, set()) == theirs.encode(text, set())
    ids = [np.frombuffer(core.encode_to_tiktoken_buffer(text, allowed), np.uint32) for core in (ours, theirs)]
    assert ids[0].tolist() == ids[1].tolist()
    (our_ids, our_ends), (their_ids, their_ends) = (core.encode_with_unstable(text, allowed) for core in (ours, theirs))
    assert our_ids == their_ids
    assert sorted(our_ends) == sorted(their_ends)
