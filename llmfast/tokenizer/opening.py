"""Opens a tokenizer by its published name or its path."""

from __future__ import annotations

import os

from llmfast.tokenizer.registry import get_encoding, list_encoding_names
from llmfast.tokenizer.tokenizer import Tokenizer


def open_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer at a path, or else the published encoding of that name.

    Raises:
        FileNotFoundError: `name` is neither a path nor a published name.
        ValueError: the tokenizer is damaged.
        OSError: a published encoding that is not in tiktoken's cache and cannot be downloaded; says how to fill it.
    """
    if os.path.exists(name):
        return Tokenizer.load(name)
    published = list_encoding_names()
    if name not in published:
        raise FileNotFoundError(f"{os.fspath(name)!r} is neither a tokenizer's file nor one of {', '.join(published)}")
    return Tokenizer.of(get_encoding(os.fspath(name)))
