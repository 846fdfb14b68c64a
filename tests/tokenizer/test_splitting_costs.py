"""Time grows with the length of the text and no faster, whatever the text is: for every pattern, every entry point, and
every way that special tokens are handled. Twice the text may take at most three times as long."""

import gc
import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest

from llmfast import Encoding, _bpe
from llmfast.tokenizer import patterns
from llmfast.tokenizer.encoding import check_disallowed
from llmfast.tokenizer.training import learn_ranks

SIZE = 1 << 19
RANKS = {bytes([byte]): byte for byte in range(256)} | {b"he": 256, b"ll": 257, b" w": 258, b"hell": 259}

USERS = patterns.CL100K + "|x"  # which the engine does not know
PATTERNS = {name: pat_str for pat_str, name in patterns.NATIVE.items()}

# What a text repeats, and what it ends with: runs of each class, alternations, what looks like a contraction, white
# space that only its end decides about, marks, scripts without spaces, bytes that are not UTF-8.
TEXTS: dict[str, tuple[bytes, bytes]] = {
    **{f"{unit!a} again and again": (unit.encode(), b"") for unit in [
        "a", "A", "1", "٣", " ", "\n", "\u00a0", "!", "/", "'", "中", "あ", "・", "\u3040", "é", "ʰ", "\u0301", "😀",
        "\x00", "aA", "ʰU", "UUʰu", "a1", "a!", "'s", "'r'v", "x's", "\u017f'\u017f", " \n", "a\n", "!\n/", "中1",
        "中 ", "・\n", "\u0301a", "hello world ", "a b1!\n",
    ]},
    **{f"{unit!a}, then {end!a}": (unit.encode(), end.encode()) for unit, end in itertools.product(
        [" ", " \n", "\u00a0", "A", "\u0301", "中", "!"], ["a", "1"]
    )},
    "bytes that are not UTF-8": (b"\xff", b""),
    "characters cut short": (b"\xf0\x9f\x98", b""),
    "continuations": (b"a\x80\xe4 ", b""),
}  # fmt: skip


def seconds(work: Callable[[int], object], size: int) -> float:
    """The CPU time of this thread, without that of Python's garbage collector: other programs do not count."""
    gc.disable()
    start = time.thread_time()
    work(size)
    spent = time.thread_time() - start
    gc.enable()
    return spent


def check_growth(work: Callable[[int], object], size: int = SIZE) -> None:
    once = twice = float("inf")
    for _ in range(8):
        once, twice = min(once, seconds(work, size)), min(twice, seconds(work, 2 * size))
        if twice < 3 * once or (twice < 0.05 and size > 8_000_000):  # a nanosecond or two per byte
            return
        if twice < 0.05:  # where a cache or a page more or less counts
            once = twice = float("inf")
            size *= 2
    raise AssertionError(f"{size} bytes take {once:.4f} s, twice as many {twice:.4f} s")


def repeated(unit: bytes, size: int) -> bytes:
    return unit * (size // len(unit))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_under_every_pattern(pattern):
    """DeepSeek's looked for the end of a stretch without numbers again for every 256 pieces."""
    for name, (unit, end) in TEXTS.items():
        try:
            check_growth(lambda size, unit=unit, end=end: _bpe.count_pieces(repeated(unit, size) + end, pattern))
            check_growth(lambda size, unit=unit, end=end: _bpe.certain_boundary(repeated(unit, size) + end, pattern, 1))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def encoding(pat_str: str, specials: dict[str, int] | None = None) -> Encoding:
    return Encoding("costs", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens=specials or {})


@pytest.mark.parametrize("pattern", [*PATTERNS, "a user's"])
def test_every_entry_point(pattern):
    encoder = encoding(PATTERNS.get(pattern, USERS))
    words, run = "hello world ", "hell"
    scale = 1 if pattern in PATTERNS else 8

    def text(unit: str, size: int) -> str:
        return unit * (size // scale // len(unit))

    for unit in (words, run):
        check_growth(lambda size, unit=unit: encoder.encode(text(unit, size)))
        check_growth(lambda size, unit=unit: encoder.encode_ordinary(text(unit, size)))
        check_growth(lambda size, unit=unit: encoder.encode_to_numpy(text(unit, size)))
        check_growth(lambda size, unit=unit: encoder.encode_batch([text(unit, size)] * 2, num_threads=1))
        check_growth(
            lambda size, unit=unit: encoder.encode_documents([text(unit, size)], append_eot=False, num_threads=1)
        )
        check_growth(lambda size, unit=unit: encoder.count(text(unit, size)))
        check_growth(lambda size, unit=unit: encoder.encode_with_unstable(text(unit, size // 4)))
        check_growth(lambda size, unit=unit: encoder._encode_bytes(text(unit, size).encode() + b"\xff"))
        for length in (1, 1000):
            chunks = [unit[:length] if length == 1 else unit * (length // len(unit))]
            check_growth(
                lambda size, chunks=chunks: list(
                    encoder.encode_iterable(chunks * (size // (8 * scale) // len(chunks[0])))
                )
            )
    check_growth(lambda size: encoder.encode_batch(["a"] * (size // 16 // scale), num_threads=1))
    check_growth(lambda size: encoder.encode_documents([b"a"] * (size // 16 // scale), append_eot=False))


def test_decoding():
    encoder = encoding(patterns.CL100K, {"<|long|>" * 100: 300})
    for token in (259, 300):
        check_growth(lambda size, token=token: encoder.decode([token] * (size // 50)))
        check_growth(lambda size, token=token: encoder.decode_bytes(np.full(size // 50, token)))
        check_growth(lambda size, token=token: encoder.decode_tokens_bytes([token] * (size // 50)))
        check_growth(lambda size, token=token: encoder.decode_batch([[token]] * (size // 50)))
    check_growth(lambda size: encoder.decode_with_offsets([259] * (size // 50)))
    check_growth(lambda size: encoder.decode([200] * size))  # which is not UTF-8


SPECIALS = {f"<|reserved_special_token_{i}|>": 300 + i for i in range(3000)}
NESTED = {"<" * length: 300 + length for length in range(1, 500)}


@pytest.mark.parametrize("pat_str", [patterns.CL100K, USERS])
def test_special_tokens(pat_str):
    """A user's pattern copied the rest of the text at every special token."""
    encoder = encoding(pat_str, SPECIALS)
    some = set(list(SPECIALS)[::7])
    for unit in ("<|reserved_special_token_17|>a", "<|reserved_special_token_", "<"):
        for options in (
            {"allowed_special": "all"},
            {"allowed_special": some, "disallowed_special": ()},
            {"disallowed_special": {"<|reserved_special_token_x"}},
        ):
            check_growth(
                lambda size, unit=unit, options=options: encoder.encode(unit * (size // 8 // len(unit)), **options)
            )
    check_growth(lambda size: check_disallowed("<|reserved_special_token_" * (size // 25), SPECIALS.keys()))


def test_the_time_does_not_depend_on_the_number_of_special_tokens():
    """Each of 3,000 with one prefix was compared at every place that had the prefix."""
    text = "<|reserved_special_token_x" * 10_000

    def cost(specials: dict[str, int], text: str) -> float:
        encoder = encoding(patterns.CL100K, specials)
        texts = frozenset(specials)
        calls = [
            lambda times: encoder.encode(text * times),
            lambda times: check_disallowed(text * times, texts),
        ]
        return sum(min(seconds(call, 1) for _ in range(5)) for call in calls)

    few = dict(list(SPECIALS.items())[:10])
    assert cost(SPECIALS, text) < 5 * cost(few, text)  # 300 times as many


def test_special_tokens_inside_one_another():
    """500 start at each place, of which only the shortest is allowed, or the longest."""
    encoder = encoding(patterns.CL100K, NESTED)
    for allowed in (1, len(NESTED)):
        options = {"allowed_special": {"<" * allowed}, "disallowed_special": ()}
        check_growth(lambda size, options=options: encoder.encode("<" * (size // 16), **options))


def test_training():
    for unit in (b"hello world ", b"hell", b"hello world <|end|>"):
        check_growth(
            lambda size, unit=unit: learn_ranks(
                [repeated(unit, size)],
                258,
                pat_str=patterns.DEEPSEEK,
                separators=["<|never|>", "<|end|>"],
                min_frequency=1,
                tie_break="bytes",
                num_threads=1,
                progress=None,
                allow_smaller=False,
            )
        )
