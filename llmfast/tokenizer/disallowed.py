"""Refuses text that contains special tokens which the caller has not allowed."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import NoReturn

from llmfast import _bpe


def check_disallowed(text: str, disallowed: Collection[str]) -> None:
    """``ValueError`` for the first of the disallowed texts, special tokens or not, that `text` holds."""
    if "" in disallowed:  # which every text holds
        raise_disallowed_special_token("")
    if (found := _finder(frozenset(disallowed)).first_in(text)) is not None:
        raise_disallowed_special_token(found)


@functools.lru_cache(maxsize=128)
def _finder(texts: frozenset[str]) -> _bpe.Finder:
    return _bpe.Finder(texts)


def raise_disallowed_special_token(token: str) -> NoReturn:
    raise ValueError(
        f"Encountered text corresponding to disallowed special token {token!r}.\n"
        "If you want this text to be encoded as a special token, "
        f"pass it to `allowed_special`, e.g. `allowed_special={{{token!r}, ...}}`.\n"
        f"If you want this text to be encoded as normal text, disable the check for this token "
        f"by passing `disallowed_special=(enc.special_tokens_set - {{{token!r}}})`.\n"
        "To disable this check for all special tokens, pass `disallowed_special=()`.\n"
    )
