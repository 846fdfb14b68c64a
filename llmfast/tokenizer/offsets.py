"""Which characters of a text each of its tokens covers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

Offsets = list[tuple[int, int]]


def character_offsets(text: str, lengths: Sequence[int]) -> Offsets:
    """The (start, end) of tokens that cover `text`, in characters, from their lengths in bytes of UTF-8.

    A token that begins or ends inside a character has all of that character, as Hugging Face's library counts: its
    neighbor has it, too.

    >>> character_offsets("né!", [1, 1, 2])
    [(0, 1), (1, 2), (1, 3)]
    """
    ends = list(accumulate(lengths, initial=0))
    if text.isascii():
        return list(pairwise(ends))
    utf8 = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    # Of each byte, the index of its character: how many characters have begun, less one.
    character = np.cumsum((utf8 & 0xC0) != 0x80) - 1
    places = np.array(ends)
    starts, stops = character[places[:-1]], character[places[1:] - 1] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def with_surrogate_pairs(text: str, offsets: Offsets) -> Offsets:
    """The offsets in `text` of tokens whose offsets count each of its surrogate pairs as one character."""
    widths = []
    i = 0
    while i < len(text):
        is_pair = "\ud800" <= text[i] < "\udc00" and "\udc00" <= text[i + 1 : i + 2] < "\ue000"
        widths.append(1 + is_pair)
        i += 1 + is_pair
    places = list(accumulate(widths, initial=0))
    return [(places[start], places[end]) for start, end in offsets]
