"""``Encoding._core_bpe``: private in tiktoken, but used by other programs."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmfast.tokenizer.encoding import Encoding


class CoreBPE:
    """The methods of ``tiktoken._tiktoken.CoreBPE``, by those of an `Encoding`: no text is disallowed here."""

    def __init__(self, encoding: Encoding):
        self._encoding = encoding

    def encode_ordinary(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode(self, text: str, allowed_special: Set[str]) -> list[int]:
        return self._encoding.encode(text, allowed_special=allowed_special, disallowed_special=())

    def encode_to_tiktoken_buffer(self, text: str, allowed_special: Set[str]) -> npt.NDArray[np.uint32]:
        """An object with the buffer protocol, for ``numpy.frombuffer``; here an array."""
        return self._encoding.encode_to_numpy(text, allowed_special=allowed_special, disallowed_special=())

    def encode_with_unstable(self, text: str, allowed_special: Set[str]) -> tuple[list[int], list[list[int]]]:
        return self._encoding.encode_with_unstable(text, allowed_special=allowed_special, disallowed_special=())

    def encode_single_token(self, piece: bytes) -> int:
        return self._encoding.encode_single_token(piece)

    def encode_single_piece(self, piece: bytes) -> list[int]:
        return self._encoding._encode_single_piece(piece)

    def _encode_bytes(self, text: bytes) -> list[int]:
        return self._encoding._encode_bytes(text)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(tokens)

    def decode_single_token_bytes(self, token: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token)

    def token_byte_values(self) -> list[bytes]:
        return self._encoding.token_byte_values()
