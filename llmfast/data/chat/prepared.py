"""What was prepared of conversations, whatever a split of them holds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.opening import saved_chat
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


def check_shards(shards: TokenShards, tokenizer: Tokenizer) -> None:
    """Check that the shards were made with the tokenizer beside them.

    Raises:
        ValueError: they were not.
    """
    if shards.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"the token shards in {shards.folder} were made with another tokenizer")
