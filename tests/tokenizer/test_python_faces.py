"""What passes between Python and the engine: ints, lists, arrays, text; and what is left when a call fails half-way."""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from llmfast.tokenizer import Encoding, patterns

LETTERS = {letter.encode(): index for index, letter in enumerate("abcdefghij ")}  # and no other byte
# Tokens around 16 bytes, which are moved at once, and characters that end in the next token.
TOKENS = [
    b"x" * 15,
    b"y" * 16,
    b"z" * 17,
    b"w" * 300,
    "é".encode() * 8,
    "é".encode() * 9,
    b"\xe4",
    b"\xb8\xad",
    b"\n",
]


def make_encoding(tokens, largest=300, pat_str=patterns.GPT2) -> Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in tokens:
        ranks.setdefault(token, len(ranks))
    specials = {"<|endoftext|>": largest, "<|中|>" * 6: largest - 1}
    return Encoding("faces", pat_str=pat_str, mergeable_ranks=ranks, special_tokens=specials)


def test_every_length_of_token_decodes_at_every_place():
    """The last tokens must not be written past the end of the str, nor the others over their neighbours."""
    encoding = make_encoding(TOKENS)
    ids = [encoding.encode_single_token(token) for token in TOKENS] + [299, 300]
    for length in range(4):
        for tokens in itertools.product(ids, repeat=length):
            expected = b"".join(encoding.decode_tokens_bytes(tokens))
            assert encoding.decode_bytes(list(tokens)) == expected
            assert encoding.decode(list(tokens)) == expected.decode("utf-8", "replace")


def test_ints_of_all_kinds_are_ids():
    encoding = make_encoding([])
    assert encoding.decode([104, np.int64(105), True, np.uint8(33)]) == "hi\x01!"
    for sequence in ([2**31], [2**32 - 1], np.array([2**31]), (2**30,)):
        with pytest.raises(KeyError, match=str(sequence[0])):
            encoding.decode(sequence)
    with pytest.raises(TypeError):
        encoding.decode([104, 105.0])


def test_a_list_that_shrinks_while_it_is_read():
    encoding = make_encoding([])

    class Clears:
        def __index__(self):
            tokens.clear()
            return 105

    tokens = [104, Clears(), *range(97, 107)]
    assert encoding.decode_bytes(tokens) == b"hi"


def test_ints_in_lists_outlive_every_list():
    """Lists do not count the ints that they share: a list that dies gives back a reference that it never took."""
    encoding = make_encoding([b"xx"])
    before = encoding.encode("xx")
    for _ in range(10_000):
        assert encoding.encode("xxxxxx" * 20) == before * 60
    assert sys.getrefcount(before[0]) > 2**29
    assert before == [256]


@pytest.mark.parametrize("largest", [300, 70_000])  # uint16 and uint32
def test_threads_do_not_change_ids(largest):
    """An id for each byte is more than there is room for at first, and documents are longer and shorter than a task."""
    random.seed(8)
    encoding = make_encoding([b"  "], largest)
    documents = ["".join(random.choices("aé中 1\n", k=length)) for length in (0, 500_000, 3, 90_000, 200, 0, 40_000)]
    expected = [[*encoding.encode_ordinary(document), largest] for document in documents]
    for threads in (1, 2, 5):
        ids, offsets = encoding.encode_documents(documents, num_threads=threads)
        assert ids.dtype == (np.uint16 if largest == 300 else np.uint32)
        assert np.diff(offsets).tolist() == [len(one) for one in expected]
        assert ids.tolist() == list(itertools.chain(*expected))


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Interrupts:
    def __iter__(self):
        yield "".join(random.choices("abc ", k=1000))
        raise KeyboardInterrupt

    def __index__(self):
        raise KeyboardInterrupt


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads how much memory is in use from /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_call_that_fails_leaves_no_memory_behind(threads):
    encoding = Encoding("letters", pat_str=patterns.GPT2, mergeable_ranks=LETTERS, special_tokens={})
    good = "abcdefghij " * 100_000
    bad = good + "?"  # a byte that is no token, found by a thread when much is done
    ids = encoding.encode(good)
    calls = [
        (ValueError, lambda: encoding.encode_documents([good, bad, good], append_eot=False, num_threads=threads)),
        (ValueError, lambda: encoding.encode_ordinary_batch([good, bad, good], num_threads=threads)),
        (ValueError, lambda: encoding.encode(bad)),
        (TypeError, lambda: encoding.encode_documents([good, 3], append_eot=False, num_threads=threads)),
        (KeyboardInterrupt, lambda: encoding.encode_documents(Interrupts(), append_eot=False, num_threads=threads)),
        (KeyboardInterrupt, lambda: encoding.decode([*ids, Interrupts()])),
        (KeyError, lambda: encoding.decode([*ids, 99])),
        (UnicodeDecodeError, lambda: Encoding.decode(stray, [97] * 1_000_000 + [0xC3], errors="strict")),
    ]  # fmt: skip
    stray = make_encoding([])
    references, memory = sys.getrefcount(good), []
    for _ in range(24):
        for error, call in calls:
            with pytest.raises(error):
                call()
        memory.append(resident())
    assert sys.getrefcount(good) == references
    # One array of ids that is lost each time would be twice that. Allocators keep what threads gave back, and without a
    # GIL Python frees some memory later: what a few rounds have at least is compared.
    assert min(memory[14:]) - min(memory[3:8]) < 20_000_000


def test_surrogates_in_the_middle_of_documents():
    """Their text is made anew and must live as long as the call."""
    encoding = make_encoding([])
    documents = ["good " * 10, "\ud83d\ude00 and \ud800" * 2000, "after"]
    ids, offsets = encoding.encode_documents(documents, append_eot=False, num_threads=2)
    assert encoding.decode(ids[offsets[1] : offsets[2]]) == "😀 and \ufffd" * 2000
    assert encoding.encode_ordinary_batch(documents)[2] == encoding.encode("after")
