"""Tokenizers under pytest-benchmark, for those who use it; the suite ``tokenizer`` measures more.

    pytest -n 0 tests/benchmarks/test_tokenizer_speed.py --benchmark-enable --benchmark-only --benchmark-group-by group

Otherwise each is called once, and its ids are compared with tiktoken's.
"""

import importlib

import pytest

NAMES = ("llmfast", "tiktoken", "tokenizers", "fastokens", "gigatoken", "toktok", "quicktok", "rs_bpe")


@pytest.fixture(scope="module")
def tokenizers(bench):
    return importlib.import_module("benchmarks.text.tokenizers")


@pytest.fixture(scope="module")
def texts(bench):
    return importlib.import_module("benchmarks.text.fresh").streams(0.2)


def library(tokenizers, name, what):
    """The library, made anew; skips where there is none."""
    known = tokenizers.vocabularies()
    vocabulary = next((each for each in known if each.name == "cl100k_base"), known[0])
    found = dict(tokenizers.libraries(vocabulary, what))[name]
    if isinstance(found, tokenizers.Absent):
        pytest.skip(f"{name}: {found.reason}")
    return found, tokenizers.tiktoken(vocabulary)


def same(bench, name, found, expected):
    """Ours has to be right; a peer that is not takes no part."""
    status, note = importlib.import_module("benchmarks.text.text_jobs").verdict(found, expected)
    if name != "llmfast" and status == "wrong":
        pytest.skip(f"{name}: {note}")
    assert status == "ok", note


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["English", "code", "multilingual"])
def test_encode_to_lists(benchmark, bench, tokenizers, texts, kind, name):
    documents = texts[kind].documents
    theirs, tiktoken = library(tokenizers, name, "lists")
    same(bench, name, theirs.lists(documents), tiktoken.lists(documents))
    benchmark.group = f"encode to lists: {kind}, {texts[kind].bytes / 1e6:.2g} MB"
    benchmark(theirs.lists, documents)


@pytest.mark.parametrize("name", NAMES)
def test_decode_a_list(benchmark, bench, tokenizers, texts, name):
    text = texts["code"].whole
    theirs, tiktoken = library(tokenizers, name, "decode")
    ids = tiktoken.encode(text)
    same(bench, name, theirs.decode(ids), text)
    benchmark.group = f"decode a list: code, {texts['code'].bytes / 1e6:.2g} MB"
    benchmark(theirs.decode, ids)


@pytest.mark.parametrize("name", NAMES)
def test_one_short_call(benchmark, bench, tokenizers, name):
    theirs, tiktoken = library(tokenizers, name, "encode")
    text = "How long does it take to encode one question?"
    same(bench, name, theirs.encode(text), tiktoken.encode(text))
    benchmark.group = f"one call: {len(text)} characters"
    benchmark(theirs.encode, text)
