"""tiktoken's rank files: one line per token, with its bytes in base64 and its rank."""

from __future__ import annotations

import functools
from base64 import b64encode
from collections import UserDict
from pathlib import Path

from llmfast import _bpe

# What the files do not say: the pattern and the special tokens that the published ones were made for.
_END = "<|endoftext|>"
_MIDDLE = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": ("gpt2", {_END: 50256}),
    "p50k_base": ("gpt2", {_END: 50256}),
    "cl100k_base": (
        "cl100k",
        {_END: 100257} | {text: 100258 + i for i, text in enumerate(_MIDDLE)} | {"<|endofprompt|>": 100276},
    ),
    "o200k_base": ("o200k", {_END: 199999, "<|endofprompt|>": 200018}),
}


class RankFile(UserDict[bytes, int]):
    """The tokens of a rank file. The engine reads the contents itself, so the dict is built only when it is used."""

    def __init__(self, contents: bytes):
        self.contents = contents

    @functools.cached_property
    def data(self) -> dict[bytes, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _bpe.parse_ranks(self.contents)

    @property
    def for_engine(self) -> dict[bytes, int] | bytes:
        """The contents as they are, unless somebody has the dict and may have changed it."""
        return self.data if "data" in self.__dict__ else self.contents


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a rank file; ValueError, naming the file and the fault, where it is damaged."""
    try:
        ranks = _bpe.parse_ranks(path.read_bytes())
        check_ranks(ranks)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return ranks


def check_ranks(ranks: dict[bytes, int]) -> None:
    """ValueError unless every byte has a token and no two tokens share an id."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"it has no tokens for {len(missing)} of the 256 bytes, such as {missing[0]:#04x}")
    token_of = {rank: token for token, rank in ranks.items()}
    for token, rank in ranks.items():
        if token_of[rank] != token:
            raise ValueError(f"tokens {token!r} and {token_of[rank]!r} both have the id {rank}")


def format_ranks(ranks: dict[bytes, int]) -> bytes:
    """The content of a rank file."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b64encode(token) + b" %d\n" % rank for token, rank in by_rank)
