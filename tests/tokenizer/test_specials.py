"""Special tokens are found leftmost first and the longest of those that start together, whichever are enabled."""

import random

import pytest

from llmfast import Encoding, _bpe
from llmfast.tokenizer import patterns
from llmfast.tokenizer.encoding import check_disallowed

RANKS = {bytes([byte]): byte for byte in range(256)}
PATTERNS = [patterns.CL100K, patterns.CL100K + "|x"]  # one of the engine, and one that it does not know


def make(specials: dict[str, int], pat_str: str = patterns.CL100K) -> Encoding:
    return Encoding("special", pat_str=pat_str, mergeable_ranks=RANKS, special_tokens=specials)


def by_definition(text: str, specials: dict[str, int], allowed: set[str]) -> list[int]:
    ids = []
    while text:
        starting = [special for special in allowed if text.startswith(special)]
        if starting:
            longest = max(starting, key=len)
            ids.append(specials[longest])
            text = text[len(longest) :]
        else:
            ids.extend(text[0].encode())
            text = text[1:]
    return ids


@pytest.mark.parametrize("pat_str", PATTERNS)
@pytest.mark.parametrize("letters", ["ab", "<|a>", "é中a"])
def test_every_subset_is_found_as_the_definition_says(pat_str, letters):
    """Few letters: many special tokens are prefixes, suffixes and parts of others."""

    def texts(longest: int, count: int) -> list[str]:
        return ["".join(random.choices(letters, k=random.randint(1, longest))) for _ in range(count)]

    for _ in range(60):
        specials = {text: 300 + i for i, text in enumerate(dict.fromkeys(texts(6, random.randint(1, 20))))}
        encoding = make(specials, pat_str)
        allowed = set(random.sample(list(specials), random.randint(0, len(specials))))
        for text in texts(60, 5):
            expected = by_definition(text, specials, allowed)
            assert encoding.encode(text, allowed_special=allowed, disallowed_special=()) == expected
            every = by_definition(text, specials, set(specials))
            assert encoding.encode(text, allowed_special="all") == every
            held = {special for special in specials if special in text} - allowed
            if held:
                first = min((text.index(special), -len(special), special) for special in held)[2]
                with pytest.raises(ValueError, match="disallowed special token"):
                    encoding.encode(text, allowed_special=allowed)
                with pytest.raises(ValueError) as refused:
                    check_disallowed(text, held)
                assert repr(first) in str(refused.value).splitlines()[0]


def test_the_empty_text_is_disallowed_in_every_text():
    """As in tiktoken, whose expression for it matches at once."""
    for text in ("", "a"):
        with pytest.raises(ValueError, match="disallowed special token ''"):
            make({}).encode(text, disallowed_special={"", "b"})


def test_names_that_are_no_special_token_are_never_found():
    encoding = make({"<s>": 300})
    assert encoding.encode("<s>x", allowed_special={"<s>", "x", "nothing"}) == [300, ord("x")]


def test_of_two_names_for_one_id_the_first_is_decoded():
    """As tiktoken decodes 200018 of o200k_harmony, which has the names <|endofprompt|> and <|reserved_200018|>."""
    assert make({"<|b|>": 300, "<|a longer one|>": 300}).decode([300]) == "<|b|>"
    both = make({"<|b|>": 300, "<|a longer one|>": 300})
    assert both.encode("<|a longer one|><|b|>", allowed_special="all") == [300, 300]


def test_memory_follows_the_number_of_tokens():
    """One token with the largest id took 400 MB; decoding finds it, and none of the ids between."""
    encoding = make({"<|far|>": 2**24 - 1, "<|near|>": 256})
    assert encoding.decode([97, 256, 2**24 - 1]) == "a<|near|><|far|>"
    assert encoding.decode_single_token_bytes(2**24 - 1) == b"<|far|>"
    for unknown in (257, 2**23, 2**24 - 2, 2**24, 2**32 - 1):
        with pytest.raises(KeyError, match=str(unknown)):
            encoding.decode([97, unknown])
        with pytest.raises(KeyError, match=str(unknown)):
            encoding.decode_single_token_bytes(unknown)


def test_a_finder_of_texts():
    finder = _bpe.Finder({"ab", "abc", "b"})
    assert finder.first_in("xabd") == "ab"
    assert finder.first_in("xabcd") == "abc"
    assert finder.first_in("xyz") is None
    with pytest.raises(TypeError, match="text must be a str, got int"):
        finder.first_in(3)
