"""What an engine needs of whatever computes logits: the torch runner, or the decoder in C++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class Chunk:
    """New tokens of one sequence."""

    tokens: Sequence[int]
    past: int
    """Tokens of the sequence before them, whose keys and values are in the cache."""
    blocks: Sequence[int]
    """The blocks that hold the sequence, in order, the new tokens included. Those of which no new token sees anything,
    in any layer, may be any."""
    outputs: int
    """Of how many of the last tokens logits are wanted; may be 0."""
    previous: int | None = None
    """The token before the first of them; None at the start of a sequence."""
    prompt: int = 0
    """Tokens of the prompt, which dynamic RoPE scaling depends on."""
    adapter: str | None = None
    """The adapter of the sequence; None for the plain model."""


class Runner(Protocol):
    """Reads tokens into a cache of blocks that an engine numbers, and gives logits."""

    vocab_size: int
    context: int
    """Longest sequence."""
    default_adapter: str | None
    """The adapter that requests get which name none."""
    shares_prefixes: bool
    """Whether keys and values depend on the tokens before them alone, and not on the length of the prompt."""
    window: int | None
    """How many tokens a token sees at most in any layer, itself included; None if a layer sees all."""

    def check_adapter(self, name: str | None) -> None:
        """Raises ValueError if there is no such adapter."""
        ...

    def default_blocks(self, block_size: int, cache_dtype: str, sequences: int, memory: int | None) -> int:
        """How many blocks to allocate: those that fit into ``memory`` bytes, or enough for so many sequences of full
        length within what the device has."""
        ...

    def allocate(self, blocks: int, block_size: int, cache_dtype: str) -> None:
        """Make the cache."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store keys and values of all chunks; float32 logits (outputs of all chunks, V), chunk after chunk."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy what blocks hold, (source, target) each."""
        ...
