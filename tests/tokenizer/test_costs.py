"""What nobody's text or file can do: cost more than its share of time or memory, or leave wrong ids behind.

Twice the input may take three times as long; each attack that is tried here took four times as long. Times are those of
the process, the smallest of several: what else runs on the machine hardly changes them.
"""

import mmap
import random
import subprocess
import sys
import threading

import pytest
from stopwatch import doubling

from llmfast import _bpe
from llmfast.tokenizer import Encoding, patterns

BYTES = {bytes([byte]): byte for byte in range(256)}
MASK = 2**64 - 1


def whole(ranks=BYTES) -> Encoding:
    return Encoding("whole", pat_str=patterns.WHOLE, mergeable_ranks=ranks, special_tokens={})


def colliding(count: int) -> list[bytes]:
    """Words of 8 bytes whose (low ^ high * A) * B, the hash that once was used, has equal upper bits."""
    inverse = pow(0xD6E8FEB86659FD93, -1, 2**64)
    high = (8 << 56) * 0x9E3779B97F4A7C15
    return [((number * inverse ^ high) & MASK).to_bytes(8, "little") for number in range(count)]


def test_words_that_collide_under_a_known_hash_cost_no_more_than_others():
    """The table of short pieces was hashed without a secret and searched without a bound."""

    def encode(words: list[bytes]) -> None:
        whole().encode_documents(words, append_eot=False, num_threads=1)

    assert doubling(encode, lambda times: colliding(8_000 * times)) < 3


def test_words_that_collide_are_counted_in_time_too():
    def count(counts: dict[bytes, int]) -> None:
        corpus = _bpe.Corpus("none", [], 1)
        corpus.add_words(counts)
        assert len(corpus.words()) == len(counts)

    assert doubling(count, lambda times: dict.fromkeys(colliding(8_000 * times), 1)) < 3


def test_merges_of_a_long_token_are_derived_in_time():
    """Each merge moved all parts behind it and searched all of them."""

    def derive(length: int) -> None:
        ranks = BYTES | {b"ab": 256, b"abab": 257, b"ab" * length: 258}
        assert dict(_bpe.derive_merges(ranks))[257] == [256, 256]

    assert doubling(derive, lambda times: 15_000 * times) < 3


def test_loading_and_encoding_a_long_token_take_time_in_proportion():
    def load(length: int) -> None:
        token = b"ab" * length
        assert whole(BYTES | {b"ab": 256, b"abab": 257, token: 258}).encode(token.decode()) == [258]

    assert doubling(load, lambda times: 50_000 * times) < 3


def test_many_documents_between_separators_are_counted_in_time():
    """A separator that never came was searched in all of the text behind each one that did."""

    def count(documents: int) -> None:
        corpus = _bpe.Corpus("gpt2", [b"<|never|>", b"|"], 1)
        corpus.add_documents([b"a|" * documents])
        assert corpus.words() == [(b"a", documents)]

    assert doubling(count, lambda times: 40_000 * times) < 3


@pytest.mark.parametrize("text", ["-=" * 4, "ab", "=" * 103 + "/", "-+-+-----+--"])
def test_a_piece_that_repeats_takes_time_in_proportion(text):
    few = [
        b"-=",
        b"=-",
        b"==",
        b"--",
        b"ab",
        b"ba",
        b"-=-=",
        b"=-=",
        b"====",
        b"--+",
        b"+--",
        b"=-=-=",
        b"abab",
    ]
    ranks = BYTES | {token: 256 + rank for rank, token in enumerate(few)}
    core = _bpe.Core(ranks, {}, "none")
    assert doubling(core.count, lambda times: (text * (100_000 // len(text) * times)).encode()) < 3


def test_memory_follows_the_number_of_tokens_and_not_the_largest_id():
    code = (
        "import resource\nfrom llmfast.tokenizer import Encoding, patterns\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ranks = {bytes([byte]): byte for byte in range(256)} | {b'ab': 2**24 - 1}\n"
        "far = Encoding('far', pat_str=patterns.WHOLE, mergeable_ranks=ranks, special_tokens={'<|far|>': 2**24 - 2})\n"
        "assert far.encode('xab<|far|>', allowed_special='all') == [120, 2**24 - 1, 2**24 - 2]\n"
        "assert far.decode([2**24 - 1, 120, 2**24 - 2]) == 'abx<|far|>'\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 64 << 20


@pytest.mark.skipif(sys.maxsize < 2**40, reason="needs an address space for a long text")
def test_a_piece_that_is_too_long_is_refused_at_every_entry():
    encoding = whole()
    core = _bpe.Core(BYTES, {}, "none")
    text = bytes(2**30 + 1)  # zeros that the system gives without memory until they are written
    corpus = _bpe.Corpus("none", [], 1)
    for refuse in (
        lambda: core.encode_piece(text),
        lambda: core.count(text),
        lambda: encoding.encode_documents([text], append_eot=False),
        lambda: corpus.add_words({text: 1}),
        lambda: corpus.add_documents([text]),
    ):
        with pytest.raises(ValueError, match=r"a piece of 1073741825 bytes is too long.* at most 1073741824 bytes"):
            refuse()


@pytest.fixture(params=["bytearray", "file"])
def changing(request, tmp_path):
    """Makes of a text what can be read and changed: a view, and what it shows."""

    def make(text: bytes):
        if request.param == "bytearray":
            shown = bytearray(text)
            return memoryview(shown).toreadonly(), shown
        path = tmp_path / "text"
        path.write_bytes(text)
        with path.open("r+b") as file:
            shown = mmap.mmap(file.fileno(), 0)
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), shown

    return make


@pytest.mark.parametrize("length", [9, 40])
def test_text_that_changes_while_it_is_encoded_leaves_nothing_wrong_behind(length, changing):
    """Words were cached by the bytes that stood there afterwards, with the ids of those that stood there before."""
    draw = random.Random(length)
    letters = range(97, 123)
    ranks = BYTES | {bytes([a, b]): 256 + 26 * (a - 97) + b - 97 for a in letters for b in letters}
    table = bytes(32 if byte < 256 // length else 97 + byte % 26 for byte in range(256))
    core, fresh = (_bpe.Core(ranks, {}, "gpt2") for _ in range(2))
    view, shown = changing(bytes(100_000))
    texts, done = [], False

    def change() -> None:
        while not done:
            for text in texts[-2:]:
                shown[:] = text

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):  # new words each time: known ones are looked up and not merged
            texts += [draw.randbytes(len(shown)).translate(table) for _ in range(2)]
            core.encode_documents([view], None, 1, False)
            core.count(view)
    finally:
        done = True
        thread.join()
    for text in texts:
        assert core.encode_ordinary(text.decode()) == fresh.encode_ordinary(text.decode())
