"""A vocabulary in which each character of a text is one token, as ranks for the engine."""

from __future__ import annotations

from collections.abc import Iterable

_SURROGATES = range(0xD800, 0xE000)  # in Python's text, but in no UTF-8


def character_ranks(texts: Iterable[str]) -> dict[bytes, int]:
    """Tokens with their merge ranks: the 256 bytes, and behind them every character of `texts` that has several bytes.

    Such a character is merged byte by byte, so that its beginnings of two and of three bytes are tokens as well. They
    come first, because shorter tokens have lower ranks. A merge never joins bytes of different characters: a character
    begins with a byte that no other character has inside. Characters that `texts` do not have become several tokens.

    >>> ranks = character_ranks(["né"])
    >>> len(ranks), ranks[b"n"], ranks["é".encode()]
    (257, 110, 256)
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    written = [character.encode() for character in characters if ord(character) not in _SURROGATES]
    beginnings = {each[:length] for each in written for length in range(2, len(each) + 1)}
    tokens = [bytes([byte]) for byte in range(256)] + sorted(beginnings, key=lambda token: (len(token), token))
    return {token: rank for rank, token in enumerate(tokens)}
