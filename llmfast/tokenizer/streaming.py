"""Text and tokens that arrive in parts: chunks of text to encode, and tokens to decode one by one."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

from llmfast.tokenizer import arguments, patterns
from llmfast.tokenizer.disallowed import raise_disallowed_special_token
from llmfast.tokenizer.finding import TextFinder

if TYPE_CHECKING:
    from llmfast.tokenizer.decoding import Decoding


class StreamDecoder:
    """Decodes tokens as they are generated, and never emits part of a character.

    `push` returns the text that has become certain, which may be empty: bytes that may be the beginning of a character
    are held back until the tokens that follow complete it, or show that it is none. All that `push` and `finish`
    return, joined, is ``encoding.decode(tokens)``, whatever the tokens are: bytes that are not UTF-8 become U+FFFD.

    >>> from llmfast.tokenizer import Encoding
    >>> ranks = {bytes([byte]): byte for byte in range(256)}
    >>> encoding = Encoding("bytes", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    >>> decoder = encoding.stream_decoder()
    >>> [decoder.push(token) for token in "né".encode()], decoder.finish()
    (['n', '', 'é'], '')
    """

    def __init__(self, encoding: Decoding):
        self._token_bytes = encoding.decode_single_token_bytes
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is certain once `token` is known; ``KeyError`` for an unknown id, which changes nothing."""
        return self._characters.decode(self._token_bytes(token))

    def finish(self) -> str:
        """The rest of the text at the end: U+FFFD for an incomplete character. The decoder can then be used again."""
        rest = self._characters.decode(b"", final=True)
        self._characters.reset()
        return rest


def separable_parts(
    chunks: Iterable[str],
    *,
    pat_str: str,
    found: frozenset[str] = frozenset(),
    disallowed: frozenset[str] = frozenset(),
    raise_disallowed: Callable[[str], NoReturn] = raise_disallowed_special_token,
    touching: bool = True,
) -> Iterator[str]:
    """The joined text of `chunks` in parts whose ids, one part after the other, are the ids of the whole.

    A part ends where every pattern of the engine starts a piece, or behind a special token. Of the text, only what
    follows the last such place is kept; a pattern that the engine does not know has no such places, so that only
    special tokens end a part.

    Args:
        chunks: texts; a special token, or a character, may begin in one and end in another.
        pat_str: the splitting pattern.
        found: the special tokens that are encoded as such.
        disallowed: the texts that must not occur; `raise_disallowed` is called with the first that does.
        touching: whether a part may end right beside a special token, which some look at: those that take the
            white space around them, or that must not be part of a word.
    """
    boundary = patterns.last_certain_boundary(pat_str)
    specials, forbidden = _finder(found), _finder(disallowed)
    longest = max(map(len, found | disallowed), default=1)
    kept = ""
    settled = 0  # special tokens that start before this place have been found
    end = 0  # of the last of them
    for i, chunk in enumerate(chunks):
        arguments.check_text(chunk, f"chunks[{i}]")
        kept += chunk
        certain = max(settled, len(kept) - longest + 1)  # what starts before this place is there to its end
        if disallowed and (span := forbidden.first(kept, settled)) and span[0] < certain:
            raise_disallowed(kept[slice(*span)])
        if found:
            for start, stop in specials.spans(kept, max(settled, end)):
                if start >= certain:
                    break
                end = stop
        cut = end if touching else 0
        if boundary and (last := boundary(kept, max(end, settled - 2), certain)) and (touching or end < last < certain):
            cut = last
        if disallowed and cut > certain:  # a disallowed text may start before the cut and end behind it
            cut = 0
        settled = certain
        if cut > 0:
            yield kept[:cut]
            kept = kept[cut:]
            settled, end = max(0, settled - cut), max(0, end - cut)
    if disallowed and (span := forbidden.first(kept, settled)):
        raise_disallowed(kept[slice(*span)])
    if kept:
        yield kept


@functools.lru_cache(maxsize=128)
def _finder(texts: frozenset[str]) -> TextFinder:
    return TextFinder(texts)
