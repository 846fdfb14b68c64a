"""Token ids to text, as `tiktoken.Encoding` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmfast.tokenizer import arguments
from llmfast.tokenizer.streaming import StreamDecoder

if TYPE_CHECKING:
    from llmfast.tokenizer.engine import Engine


class Decoding:
    """The methods of `Encoding` that take token ids."""

    _engine: Engine

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`; ``KeyError`` for an unknown id."""
        if type(tokens) is not list:
            arguments.check_ids(tokens)
        try:
            return self._engine.decode_bytes(tokens)
        except TypeError:
            arguments.raise_for_ids(tokens)

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """The text of `tokens`; `errors` as for ``bytes.decode``, since tokens may end inside a character."""
        if type(tokens) is not list:
            arguments.check_ids(tokens)
        if errors != "replace":
            arguments.check_errors(errors)
        try:
            return self._engine.decode(tokens, errors)
        except TypeError:
            arguments.raise_for_ids(tokens)

    def stream_decoder(self) -> StreamDecoder:
        """An object that decodes tokens one by one as they are generated: see `StreamDecoder`."""
        return StreamDecoder(self)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token; ``KeyError`` for an unknown id."""
        try:
            found = self._engine.token_bytes(token)
        except TypeError:
            arguments.check_id(token)
            raise
        if found is None:
            arguments.check_id(token)
            raise KeyError(str(token))
        return found

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        if type(tokens) is not list:
            arguments.check_ids(tokens)
        return [self.decode_single_token_bytes(token) for token in tokens]

    def decode_with_offsets(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of `tokens`, and for each the index of the first character that has bytes of it.

        `encode_with_offsets` gives their ends, too. Raises ``UnicodeDecodeError`` where the tokens together are not
        UTF-8.
        """
        token_bytes = self.decode_tokens_bytes(tokens)
        length = 0
        offsets = []
        for token in token_bytes:
            offsets.append(max(0, length - (0x80 <= token[0] < 0xC0)))
            length += sum(1 for byte in token if not 0x80 <= byte < 0xC0)
        return b"".join(token_bytes).decode("utf-8", errors="strict"), offsets

    def decode_batch(
        self, batch: Sequence[Sequence[int]], *, errors: str = "replace", num_threads: int = 8
    ) -> list[str]:
        """`decode` of each list of tokens; on one thread, whatever `num_threads` is."""
        arguments.thread_count(num_threads)
        arguments.check_ids(batch, "batch")
        return [self.decode(tokens, errors=errors) for tokens in batch]

    def decode_bytes_batch(self, batch: Sequence[Sequence[int]], *, num_threads: int = 8) -> list[bytes]:
        """`decode_bytes` of each list of tokens; on one thread, whatever `num_threads` is."""
        arguments.thread_count(num_threads)
        arguments.check_ids(batch, "batch")
        return [self.decode_bytes(tokens) for tokens in batch]
