"""What was prepared of conversations, whatever a split of them holds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.opening import saved_chat
from llmfast.data.prepare import SPLITS
from llmfast.data.shards import TokenShards
from llmfast.tokenizer import Tokenizer

Split = TypeVar("Split")


@dataclass(frozen=True)
class PreparedChat(Generic[Split]):
    """A prepared folder, opened."""

    tokenizer: Tokenizer
    train: Split
    validation: Split

    @functools.cached_property
    def chat(self) -> ChatEncoder:
        """How conversations become tokens."""
        return saved_chat(self.tokenizer)


def open_prepared_chat(
    folder: Path, open_split: Callable[[Path], Split], shards_of: Callable[[Split], TokenShards]
) -> PreparedChat[Split]:
    """Open the tokenizer and both sides in a folder, which must belong together.

    Raises:
        ValueError: something is missing or damaged, or made with another tokenizer.
    """
    tokenizer = Tokenizer.load(folder)
    prepared = PreparedChat(tokenizer, *(open_split(folder / split) for split in SPLITS))
    for shards in map(shards_of, (prepared.train, prepared.validation)):
        if shards.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"the token shards in {shards.folder} were made with another tokenizer")
    return prepared
