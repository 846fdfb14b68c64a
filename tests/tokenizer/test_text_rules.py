"""Added tokens with rules of their own, and normalized text: the ids of Hugging Face's library, whatever the flags."""

import functools
import json
import pickle
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from llmfast.tokenizer import Tokenizer, patterns
from llmfast.tokenizer.huggingface.byte_text import token_text
from llmfast.tokenizer.huggingface.reading import from_json

# Texts that share ends, hold each other, start with a space, and change when they are normalized.
CONTENTS = [
    "<K>",
    "<a>",
    "<a><b>",
    "<b>",
    "a>",
    "<tool>",
    "cafe\u0301",
    "é",
    " x",
    "x ",
    "ab",
    "abc",
    "b",
    "\u1e9b\u0323",
]
PARTS = [
    *CONTENTS, " ", "  ", "\n", "\t", "\u00a0", "\u2028", "\x1c", "\x85", "a", "c", "_", "5", "²", "Ⅷ", "-",
    "e\u0301", "\u0301", "\u200d", "中", "한", "\u212a", "<", ">", "ⓐ", "ー", "hello", "the cat",
]  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@functools.cache
def trained() -> Tokenizer:
    return Tokenizer.train(["the cat said hello to the cafe, abc abc"] * 3, 275, special_tokens=())


def theirs_with(added, normalization) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(trained()._to_json())
    if normalization:
        tokenizer.normalizer = normalizers.NFC()
    for content, flags in added.items():
        token = AddedToken(content, **dict.fromkeys(FLAGS, False) | dict.fromkeys(flags, True))
        tokenizer.add_tokens([token])
    return tokenizer


def ours_of(theirs, folder) -> Tokenizer:
    theirs.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@example(added={"é": {"special"}}, normalization=True, texts=["e\u0301", "é", "xe\u0301"])
@example(added={"<K>": {"special"}, "<a>": set()}, normalization=True, texts=["<\u212a>", "<K>", "<a>\u0338<a"])
@given(
    added=st.dictionaries(st.sampled_from(CONTENTS), st.sets(st.sampled_from(FLAGS)), max_size=6),
    normalization=st.booleans(),
    texts=st.lists(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), min_size=1, max_size=8),
)
@settings(max_examples=250, deadline=None)
def test_every_combination_of_rules(added, normalization, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    theirs = theirs_with(added, normalization)
    ours = ours_of(theirs, folder)
    for text in texts:
        ids = theirs.encode(text).ids
        assert ours.encode(text, allowed_special="all") == ids, text
        assert ours.encode_to_numpy(text, allowed_special="all").tolist() == ids
        stable, completions = ours.encode_with_unstable(text, allowed_special="all")
        assert stable == ids[: len(stable)]
        assert completions or stable == ids
    together = [theirs.encode(text).ids for text in texts]
    assert ours.encode_batch(texts, allowed_special="all") == together

    ours.save(folder / "again")
    written = json.loads((folder / "again" / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert written == json.loads(theirs.to_str())["added_tokens"]
    for twin in (Tokenizer.load(folder / "again"), pickle.loads(pickle.dumps(ours))):
        assert twin.fingerprint == ours.fingerprint
        assert twin.encode_batch(texts, allowed_special="all") == together


def test_rules_apply_to_allowed_tokens_only(tmp_path):
    ours = ours_of(
        theirs_with({"<a>": {"lstrip", "rstrip", "special"}, "<b>": {"single_word", "special"}}, False),
        tmp_path,
    )
    a, b = (ours.encode_single_token(token) for token in ("<a>", "<b>"))
    text = "the <a> cat <b>"
    with pytest.raises(ValueError, match="disallowed special token '<a>'"):
        ours.encode(text)
    with pytest.raises(ValueError, match="disallowed special token '<b>'"):
        ours.encode(text, allowed_special={"<a>"})
    assert ours.encode(text, disallowed_special=()) == ours.encode_ordinary(text)
    only_a = ours.encode(text, allowed_special={"<a>"}, disallowed_special=())
    assert only_a == [*ours.encode_ordinary("the"), a, *ours.encode_ordinary("cat <b>")]
    assert ours.encode(text, allowed_special="all")[-1] == b
    assert b not in ours.encode(text + "s", allowed_special="all")
    assert ours.encode_batch([text], disallowed_special=()) == [ours.encode_ordinary(text)]


def test_the_engine_finds_what_has_no_rules(tmp_path):
    """Tokens that are normalized or not special are found by the engine, where that cannot matter."""
    ours = ours_of(theirs_with({"<a>": {"normalized"}, "<think>": set(), "<b>": {"special"}}, False), tmp_path)
    assert not ours.rules.need_search
    other = ours_of(theirs_with({"<a>": {"normalized"}, "<a><b>": {"special"}}, False), tmp_path)
    assert other.rules.need_search


@pytest.mark.parametrize(("flags", "normalization"), [({"lstrip"}, False), (set(), True)])
def test_tiktoken_has_no_rules(flags, normalization, tmp_path):
    ours = ours_of(theirs_with({"<a>": flags}, normalization), tmp_path)
    with pytest.raises(ValueError, match="by rules of their own, which tiktoken cannot"):
        ours.to_tiktoken()


def test_rules_decide_the_fingerprint(tmp_path):
    flags = [set(), {"special"}, {"lstrip"}, {"lstrip", "special"}, {"rstrip"}]
    prints = [ours_of(theirs_with({"<a>": each}, False), tmp_path).fingerprint for each in flags]
    assert len(set(prints)) == 5
    assert ours_of(theirs_with({"<a>": {"special", "normalized"}}, False), tmp_path).fingerprint == prints[1]


@pytest.mark.parametrize("pattern", [patterns.GPT2, r"\w+|\W"])
def test_long_text(pattern, tmp_path):
    """Thousands of tokens, each with white space to take, take linear time."""
    theirs = theirs_with({"<a>": {"lstrip", "rstrip"}, "b": {"single_word"}, " x": {"normalized"}}, True)
    theirs.decoder = decoders.ByteLevel()
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ours = ours_of(theirs, tmp_path)
    draw = random.Random(4)
    text = "".join(draw.choices(PARTS, k=20_000)) + " " * 50_000 + "<a>" + " " * 50_000
    ids = ours.encode_to_numpy(text, allowed_special="all")
    assert ids.dtype == np.uint32
    assert ids.tolist() == theirs.encode(text).ids


def test_bytes_that_are_not_utf8_come_back(tmp_path):
    ours = ours_of(theirs_with({}, True), tmp_path)
    raw = b"\xff\xfe cafe" + "\u0301 e\u0301".encode() + b"\x80"
    ids, _ = ours.encode_documents([raw], append_eot=False)
    assert ours.decode_bytes(ids) == b"\xff\xfe caf" + "\u00e9 \u00e9".encode() + b"\x80"


def file_with(added, normalizer=None, post_processor=None, **byte_level):
    vocabulary = {token_text(bytes([byte])): byte for byte in range(256)}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True} | byte_level
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": normalizer, "pre_tokenizer": step,
        "post_processor": post_processor, "decoder": step, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "added_tokens": [
            {"id": 256 + i, "content": content, **flags, **dict.fromkeys(which, True)}
            for i, (content, *which) in enumerate(added)
        ],
    }  # fmt: skip


ODD = {
    "white space that two tokens take": ([(" ", "lstrip", "rstrip"), ("<a>", "rstrip")], {}),
    "white space behind one and before another": ([("<a>", "rstrip"), (" b", "lstrip"), ("  ",)], {}),
    "a byte that is an added token": ([("Ġ", "normalized"), ("Ċ",)], {"normalizer": {"type": "Lowercase"}}),
    "a byte that is an added token, trimmed": (
        [("Ġ", "normalized")],
        {
            "normalizer": {"type": "Lowercase"},
            "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        },
    ),
    "a byte that a normalizer prepends to": (
        [("Ġ", "normalized")],
        {"normalizer": {"type": "Prepend", "prepend": "x"}},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_added_tokens_are_found_where_hugging_face_finds_them(name):
    """Traps: white space taken twice; the id of an added token that is also that of a byte, which decodes otherwise."""
    added, parts = ODD[name]
    source = json.dumps(file_with(added, **parts))
    theirs = tokenizers.Tokenizer.from_str(source)
    ours = Tokenizer.of_contents("odd", from_json(json.loads(source)))
    for text in ("a  b", "<a>  b <a> <a>", "  \n b", " ", "\n \n", "x <a>\t\r\n b  ", "Ġ Ċ\n", "é 中 😀  b", ""):
        expected = theirs.encode(text)
        assert ours.encode_with_offsets(text) == (expected.ids, expected.offsets), text
        assert ours.decode(expected.ids) == theirs.decode(expected.ids)


def test_lone_surrogates_have_offsets_under_rules():
    source = file_with([("<a>", "rstrip")])
    ours = Tokenizer.of_contents("rules", from_json(source))
    for text in ("\ud800<a> x", "a\ud83d\ude00 <a>\udc00"):
        ids, offsets = ours.encode_with_offsets(text)
        assert ids == ours.encode(text)
        assert offsets[0] == (0, 1)
        assert offsets[-1][1] == len(text)
