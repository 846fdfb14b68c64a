"""Many threads use the same objects at once, also on a Python without a GIL; and such a Python stays without it."""

import os
import random
import subprocess
import sys
import threading

import pytest

from llmfast import Encoding, _bpe
from llmfast.tokenizer import Tokenizer, patterns

BYTES = {bytes([byte]): byte for byte in range(256)}
SPECIALS = {"<|end|>": 1000, "<|start|>": 1001}
MARKED = "ab<|end|>cd"


def learned() -> dict[bytes, int]:
    pairs = [one + other for one in "etaoin shr" for other in "etaoin shr"]
    return BYTES | {pair.encode(): 256 + i for i, pair in enumerate(pairs)} | {b"then": 400, b"the": 401, b" the": 402}


def fresh(pat_str: str = patterns.CL100K) -> Encoding:
    return Encoding("shared", pat_str=pat_str, mergeable_ranks=learned(), special_tokens=SPECIALS)


def texts_of(seed: int, count: int = 30, length: int = 3000) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("etaoin shrdlu\n12'é日😀", k=length)) for _ in range(count)]


def on_threads(*work):
    """Calls each function on a thread of its own, all of them at once; their first exception is raised here."""
    barrier = threading.Barrier(len(work))
    failures = []

    def run(call):
        try:
            barrier.wait()
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def results(encoding: Encoding, texts: list[str]) -> dict[str, object]:
    """What every kind of call gives."""
    ids = [encoding.encode_ordinary(text) for text in texts]
    streams = [encoding.stream_decoder() for _ in ids[:5]]
    arrays = encoding.encode_documents(texts, append_eot=False, num_threads=2)
    return {
        "encode": [encoding.encode(text + MARKED, allowed_special="all") for text in texts],
        "encode_ordinary": ids,
        "encode_batch": encoding.encode_batch(texts, num_threads=2),
        "encode_to_numpy": [encoding.encode_to_numpy(text).tolist() for text in texts],
        "encode_documents": [array.tolist() for array in arrays],
        "encode_iterable": list(encoding.encode_iterable(texts)),
        "encode_with_offsets": encoding.encode_with_offsets(texts[0]),
        "encode_with_unstable": encoding.encode_with_unstable("then the")[0],
        "count": [encoding.count(text) for text in texts],
        "decode": [encoding.decode(one) for one in ids],
        "decode_bytes": [encoding.decode_bytes(one) for one in ids],
        "stream_decoder": [
            "".join(map(stream.push, one)) + stream.finish() for stream, one in zip(streams, ids[:5], strict=True)
        ],
        "added": encoding.with_added_tokens(["etao"], special=False).encode(texts[0]),
        "values": encoding.token_byte_values(),
    }


@pytest.mark.parametrize("pat_str", [patterns.CL100K, r"\w+|\W"], ids=["engine's pattern", "user's pattern"])
def test_eight_threads_get_what_one_gets(pat_str):
    """From the first call on, which fills caches and makes tables and the objects of ids."""
    texts = texts_of(1, count=8 if pat_str == patterns.CL100K else 2)
    expected = results(fresh(pat_str), texts)
    shared, found = fresh(pat_str), {}
    on_threads(*(lambda i=i: found.update({i: results(shared, texts)}) for i in range(8)))
    for i in range(8):
        for name, result in found[i].items():
            assert result == expected[name], name


def test_work_of_all_kinds_at_once():
    """Texts are encoded while others train, build encodings, and change the lists, dicts and buffers that are read."""
    texts = texts_of(2)
    alone = fresh()
    expected = [alone.encode_ordinary(text) for text in texts]
    shared = fresh()
    ids, ranks, buffer = [*expected[0]], learned(), bytearray(texts[0].encode())
    corpus = ["low lower lowest new newer newest wide wider widest"] * 50
    vocabulary = Tokenizer.train(corpus, 270)._mergeable_ranks
    done = threading.Event()
    known = set(range(256)) | set(ranks.values())

    def encode():
        try:
            for _ in range(6):
                assert [shared.encode_ordinary(text) for text in texts] == expected
                assert shared.encode_batch(texts, num_threads=2) == expected
        finally:
            done.set()

    def change():
        draw = random.Random(3)
        while not done.is_set():
            ids[:] = draw.choices(expected[0], k=draw.randint(0, 5000))
            for i in range(100):
                ranks[b"new%d" % i] = 2000 + i
            for i in range(100):
                del ranks[b"new%d" % i]
            buffer[:] = draw.choice(texts).encode()[: len(buffer)].ljust(len(buffer))

    def build():
        while not done.is_set():
            assert Encoding("x", pat_str=patterns.GPT2, mergeable_ranks=dict(ranks), special_tokens={}).encode("the")

    def construct_from_what_changes():
        while not done.is_set():
            _bpe.Core(ranks, SPECIALS, "gpt2")  # reads it at one moment

    def decode():
        while not done.is_set():
            assert set(shared.encode(shared.decode(ids), disallowed_special=())) <= known
            assert len(shared.decode_bytes(ids)) <= 5 * 5000

    def train():
        while not done.is_set():
            assert Tokenizer.train(corpus, 270, num_threads=2)._mergeable_ranks == vocabulary

    def documents():
        while not done.is_set():
            ids_of, offsets = shared.encode_documents([buffer, memoryview(buffer)], append_eot=False, num_threads=2)
            assert offsets[-1] == len(ids_of)

    def add():
        while not done.is_set():
            more = shared.with_added_tokens(["<|more|>"])
            assert more.encode("the<|more|>", allowed_special="all") == [401, 1002]

    try:
        on_threads(encode, change, build, construct_from_what_changes, decode, train, documents, add)
    finally:
        done.set()
    assert [shared.encode_ordinary(text) for text in texts] == expected


def test_a_corpus_is_used_by_one_call_at_a_time():
    """Its counts would be lost, or memory damaged, where two threads add to it."""
    corpus = _bpe.Corpus("gpt2", [], 1)
    refused = []

    def progress(done):
        for call in (corpus.words, lambda: corpus.add_documents(["x"]), lambda: corpus.bytes_read):
            with pytest.raises(RuntimeError, match="in use by another call"):
                call()
            refused.append(done)

    corpus.add_documents(["low low"])
    corpus.learn_merges(2, 2, _bpe.TieBreak.greatest_bytes, bytes(range(256)), progress)
    assert refused
    assert dict(corpus.words()) == {b"low": 1, b" low": 1}


@pytest.mark.skipif(getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has a GIL")
def test_the_extensions_do_not_bring_the_gil_back():
    program = "import sys, llmfast._bpe, llmfast._decoder, llmfast.tokenizer; print(sys._is_gil_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False\n"
