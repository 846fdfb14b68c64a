"""Tokenizers to read: byte-pair encoding and characters in plain Python, each definition word for word.

They are slow on purpose: nothing is cached and nothing is optimized. ``ByteBPE`` is the specification that the C++
engine is tested against; ``llmfast.tokenizer.Tokenizer`` is the same thing, thousands of times faster.

Source of the algorithm: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword
Units" (2016), on bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners" (2019),
section 2.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from llmfast.tokenizer.patterns import pieces

# How GPT-2 cuts text into words before merging: a contraction, or letters, digits or other signs with at most
# one space before them, or a run of white space.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

WHOLE = r"(?s).+"  # no splitting: a text is one word, as in minbpe's basic tokenizer

Value = TypeVar("Value")
Pair = tuple[int, int]
Order = Callable[[int, Pair], tuple[Any, ...]]


def count_words(documents: Iterable[str], pattern: str = GPT2_PATTERN) -> Counter[bytes]:
    """How often each word occurs; words are what `pattern` matches, as UTF-8."""
    return Counter(word.encode() for document in documents for word in pieces(pattern, document))


def count_pairs(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each pair of adjacent tokens occurs; `words` maps the tokens of a word to its count."""
    pairs: Counter[Pair] = Counter()
    for tokens, count in words.items():
        for pair in pairwise(tokens):
            pairs[pair] += count
    return pairs


def merge_pair(tokens: tuple[int, ...], pair: Pair, new_token: int) -> tuple[int, ...]:
    """`tokens` with each occurrence of `pair`, taken from left to right, replaced by `new_token`.

    >>> merge_pair((1, 1, 1, 2), (1, 1), 9)
    (9, 1, 2)
    """
    merged = []
    i = 0
    while i < len(tokens):
        if tokens[i : i + 2] == pair:
            merged.append(new_token)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return tuple(merged)


class ByteBPE:
    """Byte-level byte-pair encoding: tokens 0 to 255 are the bytes, token 256 + i is what merge i makes.

    >>> tokenizer = ByteBPE.train(["low low low lower lower newest newest"], vocab_size=258)
    >>> tokenizer.encode("lower")
    [257, 101, 114]
    >>> tokenizer.decode([257, 101, 114])
    'lower'
    """

    def __init__(self, merges: list[Pair], pattern: str = GPT2_PATTERN):
        self.merges = {pair: 256 + i for i, pair in enumerate(merges)}
        self.pattern = pattern
        self.token_bytes = [bytes([byte]) for byte in range(256)]
        for left, right in merges:
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])

    @classmethod
    def train(
        cls, documents: Iterable[str], vocab_size: int, pattern: str = GPT2_PATTERN, tie_break: str = "bytes"
    ) -> ByteBPE:
        """Learns merges from `documents`, the most frequent pair first, until there are `vocab_size` tokens.

        Among equally frequent pairs, ``tie_break="bytes"`` takes the one whose (left bytes, right bytes) are
        lexicographically greatest and ``"smallest_ids"`` the one whose (left id, right id) are smallest.
        """
        if vocab_size < 256:
            raise ValueError(f"vocab_size must be at least 256, one for each byte, got {vocab_size}")
        return cls(learn_merges(count_words(documents, pattern), vocab_size - 256, tie_break), pattern)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`: in each word, the earliest learned merge is applied until none applies."""
        return [token for word in pieces(self.pattern, text) for token in self._encode_word(word.encode())]

    def _encode_word(self, word: bytes) -> tuple[int, ...]:
        tokens = tuple(word)
        while True:
            known = [pair for pair in pairwise(tokens) if pair in self.merges]
            if not known:
                return tokens
            earliest = min(known, key=self.merges.__getitem__)
            tokens = merge_pair(tokens, earliest, self.merges[earliest])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD. Raises ValueError for an unknown token."""
        return b"".join(look_up(self.token_bytes, token) for token in tokens).decode(errors="replace")


def learn_merges(
    word_counts: dict[bytes, int],
    n_merges: int,
    tie_break: str = "bytes",
    min_frequency: int = 1,
    byte_order: Iterable[int] = range(256),
) -> list[Pair]:
    """The naive definition: count all pairs, merge the best one everywhere, start over.

    Stops early where no pair occurs `min_frequency` times. Token i < 256 stands for byte ``byte_order[i]``.
    """
    token_bytes = [bytes([byte]) for byte in byte_order]
    id_of_byte = {token[0]: i for i, token in enumerate(token_bytes)}
    orders: dict[str, Order] = {
        "bytes": lambda count, pair: (count, token_bytes[pair[0]], token_bytes[pair[1]]),
        "smallest_ids": lambda count, pair: (count, -pair[0], -pair[1]),
    }
    order = orders[tie_break]

    words = {tuple(id_of_byte[byte] for byte in word): count for word, count in word_counts.items()}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        pairs = count_pairs(words)
        best = max(pairs, key=lambda pair: order(pairs[pair], pair), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        new_token = len(token_bytes)
        token_bytes.append(token_bytes[best[0]] + token_bytes[best[1]])
        merges.append(best)
        words = {merge_pair(tokens, best, new_token): count for tokens, count in words.items()}
    return merges


class CharacterTokenizer:
    """One token per character: id i is the i-th of the distinct characters in code-point order.

    >>> tokenizer = CharacterTokenizer.train("hello world")
    >>> tokenizer.vocab_size, tokenizer.encode("hold")
    (8, [3, 5, 4, 1])
    >>> tokenizer.decode([3, 5, 4, 1])
    'hold'
    """

    def __init__(self, characters: str):
        self.characters = characters
        self.ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> CharacterTokenizer:
        """The tokenizer of the characters that occur in `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`. Raises ValueError for a character that the training text did not have."""
        try:
            return [self.ids[character] for character in text]
        except KeyError as error:
            known = f"not among the {self.vocab_size} known ones"
            raise ValueError(f"character {error.args[0]!r} is {known}") from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`. Raises ValueError for an unknown one."""
        return "".join(look_up(self.characters, token) for token in tokens)


def look_up(vocabulary: Sequence[Value], token: int) -> Value:
    """What a token stands for. Unlike plain indexing, this refuses negative ids."""
    if not 0 <= token < len(vocabulary):
        raise ValueError(f"{token} is not a token: they go from 0 to {len(vocabulary) - 1}")
    return vocabulary[token]
