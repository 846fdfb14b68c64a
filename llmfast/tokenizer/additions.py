"""Tokens that are added to an encoding, and the ids that they get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmfast.tokenizer import arguments

if TYPE_CHECKING:
    from llmfast.tokenizer.encoding import Encoding


def ids_of_added(encoding: Encoding, tokens: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    """The ids of tokens that are to be added to an encoding: the given ids, or those after its largest id.

    Raises:
        TypeError: a token that is not a str, or an id that is not an integer.
        ValueError: an empty text, or a text or an id that an existing token has.
    """
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise TypeError(f"tokens must be a sequence of str, got {arguments.kind(tokens)}")
    texts = list(tokens)
    first = encoding.n_vocab
    numbers = tokens.values() if isinstance(tokens, Mapping) else range(first, first + len(texts))
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for i, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        arguments.check_text(text, f"tokens[{i}]")
        arguments.check_count(number, f"the id of token {text!r}", 0)
        if not text:
            raise ValueError(f"tokens[{i}] is empty")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"tokens[{i}] is {text!r}, which no UTF-8 writes: it has half of a character")
        if text in ids or _has_token(encoding, text):
            raise ValueError(f"tokens[{i}] is {text!r}, which is a token already")
        if number in taken or _has_id(encoding, number):
            raise ValueError(f"the id of token {text!r} is {number}, which is another token's")
        ids[text] = int(number)
        taken.add(ids[text])
    return ids


def _has_token(encoding: Encoding, text: str) -> bool:
    try:
        encoding.encode_single_token(text)
    except KeyError:
        return False
    return True


def _has_id(encoding: Encoding, number: int) -> bool:
    try:
        encoding.decode_single_token_bytes(number)
    except (KeyError, OverflowError):  # an id that is too large is refused by the engine, which says so
        return False
    return True
