"""Encodes unfinished text, and finds the tokens that may change when more text follows (`encode_with_unstable`)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TypeVar

from llmfast.tokenizer.engine import Engine

Found = TypeVar("Found")


def encode_bytes(core: Engine, text: bytes) -> list[int]:
    """The ids of bytes that need not be UTF-8: from the last piece before the fault on, all is one piece."""
    if not isinstance(text, bytes):
        raise TypeError(f"expected bytes, got {type(text).__name__}")
    try:
        return core.encode_ordinary(text.decode("utf-8"))
    except UnicodeDecodeError as fault:
        valid = fault.start
    ids, last = core.encode_with_last(text[:valid].decode("utf-8"), frozenset(), ())
    last = _with_spaces_before(core, ids, last)
    stable, unstable = ids[: len(ids) - last], ids[len(ids) - last :]
    return stable + core.encode_piece(core.decode_bytes(unstable) + text[valid:])


def with_completions(
    core: Engine, sorted_tokens: list[bytes], ids: list[int], last: int
) -> tuple[list[int], list[list[int]]]:
    """Of the ids of a text whose last piece has `last` of them: those that stay, and what may follow them."""
    if last == 0:
        return ids, []
    last = _with_spaces_before(core, ids, last)
    stable, unstable = ids[: len(ids) - last], core.decode_bytes(ids[len(ids) - last :])

    completions: set[tuple[int, ...]] = set()
    for token in _starting_with(sorted_tokens, unstable):
        completions.add((_known(core.find(token)),))
    # A token may straddle the end of the text: try each that starts with a suffix of it. No suffix can be longer than
    # the longest token, which is looked up only where that shortens the search.
    longest = len(unstable) if len(unstable) < 128 else max(map(len, sorted_tokens))
    for cut in range(max(1, len(unstable) - longest), len(unstable)):
        for token in _starting_with(sorted_tokens, unstable[cut:]):
            completions.add(_covering(core, unstable[:cut] + token, len(unstable)))
    # White space at the end may be split off by what follows.
    last_character = _last_character(unstable)
    if 0 < len(last_character) < len(unstable) and last_character.decode("utf-8").isspace():
        cut = len(unstable) - len(last_character)
        completions.add((*core.merge_piece(unstable[:cut]), *core.merge_piece(unstable[cut:])))
    return stable, [list(completion) for completion in completions]


def _with_spaces_before(core: Engine, ids: list[int], last: int) -> int:
    """`last` tokens at the end of `ids` may change; if they begin with white space, so may all before it."""

    def is_space(token: int) -> bool:
        return not (core.token_bytes(token) or b"").strip(b" \n\t")

    if last > 0 and is_space(ids[-last]):
        while last < len(ids) and is_space(ids[-last - 1]):
            last += 1
    return last


def _starting_with(sorted_tokens: list[bytes], prefix: bytes) -> Iterator[bytes]:
    for at in range(bisect.bisect_left(sorted_tokens, prefix), len(sorted_tokens)):
        if not sorted_tokens[at].startswith(prefix):
            return
        yield sorted_tokens[at]


def _covering(core: Engine, text: bytes, length: int) -> tuple[int, ...]:
    """The first tokens of `text` that together have `length` bytes."""
    try:
        ids = core.encode_ordinary(text.decode("utf-8"))
    except UnicodeDecodeError:
        ids = core.merge_piece(text)
    covered = 0
    for count, token in enumerate(ids, 1):
        covered += len(_known(core.token_bytes(token)))
        if covered >= length:
            return tuple(ids[:count])
    return tuple(ids)


def _known(found: Found | None) -> Found:
    assert found is not None, "a token of the vocabulary"
    return found


def _last_character(text: bytes) -> bytes:
    """The bytes of the last character, or none where the end is not UTF-8."""
    for size in range(1, min(4, len(text)) + 1):
        if text[-size:].decode("utf-8", "ignore"):
            return text[-size:]
    return b""
