"""Text to token ids and back, token for token as tiktoken does it, on the C++ engine."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Literal, NoReturn

from llmfast import _bpe
from llmfast.tokenizer import patterns, unstable
from llmfast.tokenizer.rank_files import RankFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Specials = Literal["all"] | Set[str]
Disallowed = Literal["all"] | Collection[str]
_NONE: frozenset[str] = frozenset()


class Encoding:
    """A byte-pair encoding: a splitting pattern, tokens with their merge ranks, and special tokens.

    The methods, results and exceptions are those of ``tiktoken.Encoding``. Beyond them there are `count`,
    `encode_iterable` and `encode_documents`.

    Args:
        name: what the encoding is called.
        pat_str: the regular expression that cuts text into pieces; merges never cross them. The published
            patterns (`llmfast.tokenizer.patterns.NATIVE`) run in the engine, any other through the `regex` library.
        mergeable_ranks: token bytes -> id, which is also the order of merging, lowest first; or a rank file.
        special_tokens: text -> id; never split, and encoded only where they are allowed.
        explicit_n_vocab: where given, the number of tokens must be this, and ids have no holes.

    Raises:
        ValueError: duplicate tokens or ids, an empty token, an id above 2**24 - 1.
    """

    def __init__(
        self,
        name: str,
        *,
        pat_str: str,
        mergeable_ranks: dict[bytes, int] | RankFile,
        special_tokens: dict[str, int],
        explicit_n_vocab: int | None = None,
    ):
        self.name = name
        self._pat_str = pat_str
        self._ranks = mergeable_ranks
        self._special_tokens = special_tokens
        self._special_token_values = set(special_tokens.values())
        self._core_bpe = patterns.engine(mergeable_ranks, special_tokens, pat_str)
        self.max_token_value = self._core_bpe.largest_id
        if explicit_n_vocab:
            assert self._core_bpe.n_ordinary + len(special_tokens) == explicit_n_vocab
            assert self.max_token_value == explicit_n_vocab - 1

    def __repr__(self) -> str:
        return f"<Encoding {self.name!r}>"

    # ---- Encoding

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`; special tokens in it are plain text."""
        try:
            return self._core_bpe.encode_ordinary(text)
        except TypeError:
            _check_is_text(text)
            raise

    def encode(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = "all"
    ) -> list[int]:
        """The ids of `text`.

        Special tokens in text can steer a model, so text that holds one raises ``ValueError`` unless it is
        named in `allowed_special` (encoded as the special token) or left out of `disallowed_special` (plain
        text). Where two special tokens start at one place, the longer one counts.
        """
        try:
            return self._core_bpe.encode(text, allowed_special, disallowed_special)
        except TypeError:
            _check_is_text(text)
            raise

    def encode_to_numpy(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = "all"
    ) -> npt.NDArray[np.uint32]:
        """`encode` into a NumPy array, without a Python object for each id."""
        try:
            return self._core_bpe.encode_to_numpy(text, allowed_special, disallowed_special)
        except TypeError:
            _check_is_text(text)
            raise

    def encode_ordinary_batch(self, text: list[str], *, num_threads: int | None = 8) -> list[list[int]]:
        """`encode_ordinary` of each text, on up to `num_threads` threads."""
        return self._core_bpe.encode_batch(text, _NONE, (), threads(num_threads))

    def encode_batch(
        self,
        text: list[str],
        *,
        num_threads: int | None = 8,
        allowed_special: Specials = _NONE,
        disallowed_special: Disallowed = "all",
    ) -> list[list[int]]:
        """`encode` of each text, on up to `num_threads` threads."""
        return self._core_bpe.encode_batch(text, allowed_special, disallowed_special, threads(num_threads))

    def encode_documents(
        self,
        documents: Sequence[str | patterns.Buffer],
        *,
        append_eot: bool = True,
        num_threads: int | None = None,
    ) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
        """The ids of many documents in one array, and where each document starts and ends in it.

        Special tokens in the text are plain text. Bytes (or a memoryview, say of a memory map, which is not copied)
        need not be UTF-8: a stray byte counts as punctuation where text is split, and decodes to itself.

        Args:
            documents: texts, or their UTF-8 in bytes.
            append_eot: put `eot_token` behind each document.
            num_threads: threads to use; all cores if None. The result does not depend on it.

        Returns:
            ``(ids, offsets)``: ids as uint16 where the vocabulary has at most 65,536 ids, else uint32; offsets as
            int64, one more than documents: document `i` is ``ids[offsets[i]:offsets[i + 1]]``.

        Raises:
            ValueError: `append_eot` where the encoding has no end-of-text token; `num_threads` below 1.
        """
        separator = None
        if append_eot:
            try:
                separator = self.eot_token
            except KeyError as error:
                raise ValueError(f"no end-of-text token to append: {error}; pass append_eot=False") from None
        narrow = self.n_vocab <= 65536
        return self._core_bpe.encode_documents(documents, separator, threads(num_threads), narrow)

    def encode_iterable(self, chunks: Iterable[str]) -> Iterator[int]:
        """The ids of the texts of `chunks` joined, one by one.

        Memory does not grow with their number: of the text, only what may go on in the next chunk is kept. A pattern of
        your own may join anything, so that all of the text is kept for it, and for no splitting at all.
        """
        for text in patterns.joined_until_certain(self._pat_str, chunks):
            yield from self.encode_ordinary(text)

    def count(self, text: str) -> int:
        """How many tokens `encode_ordinary` makes of `text`."""
        try:
            return self._core_bpe.count(text)
        except TypeError:
            _check_is_text(text)
            raise

    def encode_with_unstable(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = "all"
    ) -> tuple[list[int], list[list[int]]]:
        """The ids that stay whatever text follows, and the sequences that may come behind them.

        ``decode_bytes(stable + completion)`` starts with `text` for every completion.
        """
        _check_is_text(text)
        ids, last = self._core_bpe.encode_with_last(text, allowed_special, disallowed_special)
        return unstable.with_completions(self._core_bpe, self._sorted_token_bytes, ids, last)

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        """The id of a token, special ones included; ``KeyError`` where there is none."""
        token = _as_bytes(text_or_bytes)
        found = self._core_bpe.find(token)
        if found is None:
            raise KeyError(token)
        return found

    # ---- Decoding

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`; ``KeyError`` for an unknown id."""
        return self._core_bpe.decode_bytes(tokens)

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """The text of `tokens`; `errors` as for ``bytes.decode``, since tokens may end inside a character."""
        return self._core_bpe.decode(tokens, errors)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token; ``KeyError`` for an unknown id."""
        found = self._core_bpe.token_bytes(token)
        if found is None:
            raise KeyError(str(token))
        return found

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.decode_single_token_bytes(token) for token in tokens]

    def decode_with_offsets(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of `tokens`, and for each the index of the first character that has bytes of it.

        Raises ``UnicodeDecodeError`` where the tokens together are not UTF-8.
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
        return [self.decode(tokens, errors=errors) for tokens in batch]

    def decode_bytes_batch(self, batch: Sequence[Sequence[int]], *, num_threads: int = 8) -> list[bytes]:
        """`decode_bytes` of each list of tokens; on one thread, whatever `num_threads` is."""
        return [self.decode_bytes(tokens) for tokens in batch]

    # ---- The vocabulary

    def token_byte_values(self) -> list[bytes]:
        """The bytes of every token, in lexicographic order; special tokens are not among them."""
        return list(self._sorted_token_bytes)

    @functools.cached_property
    def _sorted_token_bytes(self) -> list[bytes]:
        return sorted(self._mergeable_ranks)

    @property
    def eot_token(self) -> int:
        return self._special_tokens["<|endoftext|>"]

    @functools.cached_property
    def special_tokens_set(self) -> set[str]:
        return set(self._special_tokens)

    def is_special_token(self, token: int) -> bool:
        assert isinstance(token, int)
        return token in self._special_token_values

    @property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return self.max_token_value + 1

    # ---- What tiktoken has with an underscore, and others use

    @functools.cached_property
    def _mergeable_ranks(self) -> dict[bytes, int]:
        return self._ranks.data if isinstance(self._ranks, RankFile) else self._ranks

    def _encode_single_piece(self, text_or_bytes: str | bytes) -> list[int]:
        """The ids of a piece that is not to be split."""
        return self._core_bpe.encode_piece(_as_bytes(text_or_bytes))

    def _encode_only_native_bpe(self, text: str) -> list[int]:
        """`encode_ordinary` with the pattern run by the `regex` library."""
        pieces = patterns.pieces(self._pat_str, text)
        return [token for piece in pieces for token in self._encode_single_piece(piece)]

    def _encode_bytes(self, text: bytes) -> list[int]:
        """The ids of bytes that may end, or break, inside a character: what does not decode is one piece."""
        return unstable.encode_bytes(self._core_bpe, text)

    def __getstate__(self) -> object:
        from llmfast.tokenizer import registry

        if self is registry.ENCODINGS.get(self.name):
            return self.name
        return {
            "name": self.name,
            "pat_str": self._pat_str,
            "mergeable_ranks": self._mergeable_ranks,
            "special_tokens": self._special_tokens,
        }

    def __setstate__(self, value: object) -> None:
        from llmfast.tokenizer import registry

        if isinstance(value, str):
            self.__dict__ = registry.get_encoding(value).__dict__
            return
        self.__init__(**value)


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(num_threads: int | None) -> int:
    """How many threads to use: all cores for None."""
    if num_threads is None:
        return available_cores()
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return num_threads


def _as_bytes(text_or_bytes: str | bytes) -> bytes:
    if isinstance(text_or_bytes, str):
        return text_or_bytes.encode("utf-8")
    if not isinstance(text_or_bytes, bytes):
        raise TypeError(f"expected a str or bytes, got {type(text_or_bytes).__name__}")
    return text_or_bytes


def _check_is_text(text: object) -> None:
    """The engine refuses what is no text; for None its message would speak of its own functions."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}") from None


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
