"""Several texts are found as their definition says, however they begin alike, in time that grows with the text only."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stopwatch import doubling

from llmfast.tokenizer import Encoding, Tokenizer, patterns
from llmfast.tokenizer.finding import TextFinder

BYTES = {bytes([byte]): byte for byte in range(256)}


def by_definition(texts, text):
    found, at = [], 0
    while at < len(text):
        longest = max((each for each in texts if text.startswith(each, at)), key=len, default="")
        if longest:
            found.append((at, at + len(longest)))
        at += max(len(longest), 1)
    return found


CHAIN = ["a" * length for length in range(3, 120, 3)]  # each begins the next: more levels than an expression may have


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=6), st.booleans(), st.text("ab", max_size=80))
@settings(deadline=None)
def test_the_leftmost_and_there_the_longest(texts, with_chain, text):
    texts = texts + CHAIN * with_chain
    assert list(TextFinder(texts).spans(text)) == by_definition(texts, text)
    assert list(TextFinder(texts).spans(text + "a" * 100)) == by_definition(texts, text + "a" * 100)
    assert TextFinder(texts).first(text, 3) == next(TextFinder(texts).spans(text, 3), None)


def test_expressions_are_texts_like_any_other():
    texts = ["(", "[a", "a|b", "\\", "^", "$", ".", "\n", "\0", "\ud800", "😀"]
    assert list(TextFinder(texts).spans("".join(texts))) == by_definition(texts, "".join(texts))
    assert list(TextFinder([]).spans("abc")) == []


def test_tokens_that_each_begin_the_next_are_streamed():
    """Trap: recursion with each character that texts share."""
    specials = {"x" * length: 256 + length for length in range(1, 1500)} | {"y" * 5000: 2000, "y" * 4999 + "z": 2001}
    encoding = Encoding("chain", pat_str=patterns.GPT2, mergeable_ranks=BYTES, special_tokens=specials)
    text = "y" * 4999 + "z" + "x" * 1499 + " " + "x" * 700 + "y" * 5001
    expected = encoding.encode(text, allowed_special="all")
    assert expected == [2001, 256 + 1499, 32, 256 + 700, 2000, ord("y")]
    chunks = [text[start : start + 777] for start in range(0, len(text), 777)]
    assert list(encoding.encode_iterable(chunks, allowed_special="all")) == expected
    added = encoding.with_added_tokens(["z" * length for length in range(2, 700)], special=False)
    assert added.encode("z" * 699) == [added.encode_single_token("z" * 699)]


def test_time_grows_with_the_text_only():
    chain = TextFinder(["a" * length for length in range(1, 500)])
    assert doubling(lambda text: list(chain.spans(text)), lambda times: ("a" * 700 + "b") * (30 * times)) < 3
    many = TextFinder([f"<|special_{i}|>" for i in range(3000)])
    assert doubling(lambda text: list(many.spans(text)), lambda times: "<|special_" * (10_000 * times)) < 3


def test_many_separators_of_a_pattern_of_your_own():
    """Trap: each of thousands of separators tried at every place that begins like one."""
    separators = [f"<|special_{i}|>" for i in range(2000)]
    tokenizer = Tokenizer.train(["ab ab<|special_7|>ab ab"] * 3, 2257, pattern=r"[a-z]+|\s", special_tokens=separators)
    assert tokenizer.encode("ab<|special_7|>", allowed_special="all") == [
        256,
        tokenizer.encode_single_token("<|special_7|>"),
    ]
