"""What an engine does: the face that `llmfast._bpe.Core` has, and what stands around it for more patterns and rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Buffer: TypeAlias = bytes | bytearray | memoryview
Specials: TypeAlias = str | Collection[str]
"""Texts of special tokens, or "all"."""
Ids: TypeAlias = npt.NDArray[np.unsignedinteger]


class Engine(Protocol):
    """Encodes and decodes for an `Encoding`, which has checked the arguments or explains what the engine refuses."""

    @property
    def largest_id(self) -> int: ...
    @property
    def n_ordinary(self) -> int:
        """How many tokens there are without the special ones."""
        ...

    def encode(self, text: str, allowed: Specials, disallowed: Specials, /) -> list[int]: ...
    def encode_ordinary(self, text: str, /) -> list[int]: ...
    def encode_to_numpy(self, text: str, allowed: Specials, disallowed: Specials, /) -> npt.NDArray[np.uint32]: ...
    def encode_with_last(self, text: str, allowed: Specials, disallowed: Specials, /) -> tuple[list[int], int]:
        """The ids, and how many of them the last piece has."""
        ...

    def encode_batch(
        self, texts: Sequence[str], allowed: Specials, disallowed: Specials, threads: int, /
    ) -> list[list[int]]: ...
    def encode_documents(
        self, documents: Iterable[str | Buffer], separator: int | None, threads: int, narrow: bool, /
    ) -> tuple[Ids, npt.NDArray[np.int64]]: ...
    def count(self, text: str, /) -> int: ...
    def encode_piece(self, piece: bytes, /) -> list[int]:
        """The ids of a piece, which is not split."""
        ...

    def merge_piece(self, piece: bytes, /) -> list[int]:
        """The same by merging only, even where the whole piece is a token."""
        ...

    def find(self, token: bytes, /) -> int | None: ...
    def token_bytes(self, token: int, /) -> bytes | None: ...
    def decode(self, tokens: Iterable[int], errors: str, /) -> str: ...
    def decode_bytes(self, tokens: Iterable[int], /) -> bytes: ...
