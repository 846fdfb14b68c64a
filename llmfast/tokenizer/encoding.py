"""Text to token ids and back, token for token as tiktoken does it, on the C++ engine."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal

from llmfast.tokenizer import additions, arguments, offsets, patterns, rules_engine, unstable
from llmfast.tokenizer.core_bpe import CoreBPE
from llmfast.tokenizer.decoding import Decoding
from llmfast.tokenizer.disallowed import (
    check_disallowed as check_disallowed,  # which the engine looks up here
)
from llmfast.tokenizer.disallowed import raise_disallowed_special_token
from llmfast.tokenizer.engine import Buffer
from llmfast.tokenizer.formats.rank_files import RankFile
from llmfast.tokenizer.huggingface.pre_tokenizers import native_pattern
from llmfast.tokenizer.streaming import separable_parts
from llmfast.tokenizer.text_rules import TextRules

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Specials = Literal["all"] | Set[str]
Disallowed = Literal["all"] | Collection[str]
_NONE: frozenset[str] = frozenset()
_ALL: Literal["all"] = "all"


class Encoding(Decoding):
    """A byte-pair encoding: a splitting pattern, tokens with their merge ranks, and special tokens.

    The methods, results and exceptions are those of ``tiktoken.Encoding``. Beyond them there are `count`,
    `encode_documents`, `encode_iterable`, `encode_with_offsets` and `stream_decoder`.

    Args:
        name: what the encoding is called.
        pat_str: the regular expression that cuts text into pieces; merges never cross them. The published
            patterns (`llmfast.tokenizer.patterns.NATIVE`) run in the engine, whichever way they are spelled, any other
            through the `regex` library.
        mergeable_ranks: token bytes -> id, which is also the order of merging, lowest first; or a rank file.
        special_tokens: text -> id; never split, and encoded only where they are allowed.
        explicit_n_vocab: where given, the number of tokens must be this, and ids have no holes.
        rules: how text is read beyond that, as a file of Hugging Face may say; None for nothing more. Every method
            that takes text follows them, because they are part of its engine.

    Attributes:
        rules: the same; None where they would change nothing.

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
        rules: TextRules | None = None,
    ):
        self.name = name
        self._pat_str = pat_str
        self._ranks = mergeable_ranks
        self._special_tokens = special_tokens
        self._special_token_values = set(special_tokens.values())
        self.rules = rules if rules is not None and rules.are_needed else None
        self._engine = rules_engine.engine(mergeable_ranks, special_tokens, native_pattern(pat_str), self.rules)
        self.max_token_value = self._engine.largest_id
        if explicit_n_vocab:
            self._check_size(explicit_n_vocab)

    def _check_size(self, explicit_n_vocab: int) -> None:
        size = self._engine.n_ordinary + len(self._special_tokens)
        if not size == self.n_vocab == explicit_n_vocab:
            raise ValueError(
                f"explicit_n_vocab is {explicit_n_vocab}, but there are {size} tokens, and the largest id is "
                f"{self.max_token_value}"
            )

    def __repr__(self) -> str:
        return f"<Encoding {self.name!r}>"

    # ---- Encoding

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`; special tokens in it are plain text."""
        try:
            return self._engine.encode_ordinary(text)
        except (TypeError, AttributeError):
            arguments.check_text(text)
            raise

    def encode(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = _ALL
    ) -> list[int]:
        """The ids of `text`.

        Special tokens in text can steer a model, so text that holds one raises ``ValueError`` unless it is
        named in `allowed_special` (encoded as the special token) or left out of `disallowed_special` (plain
        text). Where two special tokens start at one place, the longer one counts.
        """
        if allowed_special is not _NONE or disallowed_special is not _ALL:
            arguments.check_specials(allowed_special, disallowed_special)
        try:
            return self._engine.encode(text, allowed_special, disallowed_special)
        except (TypeError, AttributeError):
            arguments.check_text(text)
            raise

    def encode_to_numpy(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = _ALL
    ) -> npt.NDArray[np.uint32]:
        """`encode` into a NumPy array, without a Python object for each id."""
        arguments.check_text(text)
        arguments.check_specials(allowed_special, disallowed_special)
        return self._engine.encode_to_numpy(text, allowed_special, disallowed_special)

    def encode_ordinary_batch(self, text: list[str], *, num_threads: int | None = 8) -> list[list[int]]:
        """`encode_ordinary` of each text, on up to `num_threads` threads."""
        return self._encode_all(text, num_threads, _NONE, ())

    def encode_batch(
        self,
        text: list[str],
        *,
        num_threads: int | None = 8,
        allowed_special: Specials = _NONE,
        disallowed_special: Disallowed = _ALL,
    ) -> list[list[int]]:
        """`encode` of each text, on up to `num_threads` threads.

        Besides the lists themselves, memory for the ids of some 16 million characters is taken at a time.
        """
        arguments.check_specials(allowed_special, disallowed_special)
        return self._encode_all(text, num_threads, allowed_special, disallowed_special)

    def _encode_all(
        self, texts: Iterable[str], num_threads: int | None, allowed: Specials, disallowed: Disallowed
    ) -> list[list[int]]:
        count = arguments.thread_count(num_threads)
        arguments.refuse_single(texts, "text")
        texts = texts if isinstance(texts, list | tuple) else list(texts)
        arguments.check_texts(texts, "text")
        lists: list[list[int]] = []
        for group in _groups(texts):
            lists += self._engine.encode_batch(group, allowed, disallowed, count)
        return lists

    def encode_documents(
        self,
        documents: Sequence[str | Buffer],
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
            TypeError: a document that is neither text nor bytes, or one text in the place of several.
        """
        count = arguments.thread_count(num_threads)
        arguments.refuse_single(documents, "documents")
        separator = None
        if append_eot:
            try:
                separator = self.eot_token
            except KeyError as error:
                raise ValueError(f"no end-of-text token to append: {error}; pass append_eot=False") from None
        narrow = self.n_vocab <= 65536
        try:
            return self._engine.encode_documents(documents, separator, count, narrow)
        except (TypeError, AttributeError):
            arguments.check_texts(documents, "documents", allow_bytes=True)
            raise

    def encode_iterable(
        self,
        chunks: Iterable[str],
        *,
        allowed_special: Specials = _NONE,
        disallowed_special: Disallowed = (),
    ) -> Iterator[int]:
        """The ids of the texts of `chunks` joined, one by one: those that `encode` gives of the whole.

        A special token, like any other, may begin in one chunk and end in another. Unlike in `encode`, a special token
        that is neither allowed nor disallowed is plain text by default; one that is disallowed raises ``ValueError``
        when it is reached, which is behind the ids of the text before it.

        Memory does not grow with the number of chunks: of the text, only what may continue in the next chunk is kept.
        A pattern of your own may join anything, so that for it, and for no splitting at all, all of the text up to the
        next special token is kept.
        """
        if not isinstance(chunks, Iterable):
            raise TypeError(f"chunks must be an iterable of str, got {arguments.kind(chunks)}")
        arguments.check_specials(allowed_special, disallowed_special)
        every = self._special_tokens.keys()
        allowed = frozenset(every if allowed_special == "all" else every & set(allowed_special))
        disallowed = frozenset(every - allowed if disallowed_special == "all" else disallowed_special)
        rules = self.rules or TextRules()
        parts = separable_parts(
            chunks,
            pat_str=native_pattern(self._pat_str) if rules.can_be_cut else patterns.WHOLE,
            found=allowed | rules.always_found,
            disallowed=disallowed - {""},
            raise_disallowed=raise_disallowed_special_token,
            touching=not rules.need_search,
        )
        return (token for part in parts for token in self._encode_part(part, allowed))

    def _encode_part(self, text: str, allowed: frozenset[str]) -> list[int]:
        if not allowed:
            return self.encode_ordinary(text)
        return self.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_with_offsets(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = _ALL
    ) -> tuple[list[int], offsets.Offsets]:
        """`encode`, and for each id the (start, end) of the characters of `text` that it covers.

        They are those of Hugging Face's ``Encoding.offsets``, whatever the rules say about normalizing and trimming: a
        token that begins or ends inside a character has all of it, so that the offsets of neighbors may overlap.

        >>> ranks = {bytes([byte]): byte for byte in range(256)} | {"né".encode()[:2]: 256}
        >>> encoding = Encoding("small", pat_str=r"\\w+", mergeable_ranks=ranks, special_tokens={})
        >>> encoding.encode_with_offsets("né")
        ([256, 169], [(0, 2), (1, 2)])
        """
        ids = self.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        whole = patterns.joined_surrogates(text)
        if isinstance(self._engine, rules_engine.RulesEngine):
            covered = self._engine.offsets(whole, ids, allowed_special, disallowed_special)
        elif isinstance(self._engine, patterns.RegexCore):
            covered = self._engine.offsets(whole, allowed_special, disallowed_special)
        else:
            covered = offsets.character_offsets(whole, list(map(len, self.decode_tokens_bytes(ids))))
        return ids, covered if len(whole) == len(text) else offsets.with_surrogate_pairs(text, covered)

    def count(self, text: str) -> int:
        """How many tokens `encode_ordinary` makes of `text`."""
        arguments.check_text(text)
        return self._engine.count(text)

    def encode_with_unstable(
        self, text: str, *, allowed_special: Specials = _NONE, disallowed_special: Disallowed = _ALL
    ) -> tuple[list[int], list[list[int]]]:
        """The ids that stay whatever text follows, and the sequences that may come behind them.

        ``decode_bytes(stable + completion)`` starts with `text` for every completion.
        """
        arguments.check_text(text)
        arguments.check_specials(allowed_special, disallowed_special)
        ids, last = self._engine.encode_with_last(text, allowed_special, disallowed_special)
        return unstable.with_completions(self._engine, self._sorted_token_bytes, ids, last)

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        """The id of a token, special ones included; ``KeyError`` where there is none."""
        token = _as_bytes(text_or_bytes)
        found = self._engine.find(token)
        if found is None:
            raise KeyError(token)
        return found

    # ---- The vocabulary

    def token_byte_values(self) -> list[bytes]:
        """The bytes of every token, in lexicographic order; special tokens are not among them."""
        return list(self._sorted_token_bytes)

    @functools.cached_property
    def _sorted_token_bytes(self) -> list[bytes]:
        return sorted(self._mergeable_ranks)

    def with_added_tokens(self, tokens: Iterable[str] | Mapping[str, int], *, special: bool = True) -> Encoding:
        """A new encoding that has these tokens, too; this one stays as it is.

        Args:
            tokens: their texts, which get the ids behind the largest one, or a mapping of text to id.
            special: special tokens, encoded only where they are allowed. Others are ordinary text to the caller and
                always found, wherever their text stands.

        Raises:
            ValueError: an empty text; a text or an id that is a token's already; an id above 2**24 - 1.

        >>> ranks = {bytes([byte]): byte for byte in range(256)}
        >>> encoding = Encoding("bytes", pat_str=r"\\w+", mergeable_ranks=ranks, special_tokens={})
        >>> chat = encoding.with_added_tokens(["<|start|>", "<|end|>"])
        >>> chat.encode("<|start|>a", allowed_special="all"), chat.n_vocab
        ([256, 97], 258)
        """
        ids = additions.ids_of_added(self, tokens)
        rules = self.rules
        if rules is not None or not special:
            rules = (rules or TextRules()).with_added(self._special_tokens, ids, special)
        return Encoding(
            self.name,
            pat_str=self._pat_str,
            mergeable_ranks=self._ranks,
            special_tokens=self._special_tokens | (ids if special else {}),
            rules=rules,
        )

    @property
    def eot_token(self) -> int:
        return self._special_tokens["<|endoftext|>"]

    @functools.cached_property
    def special_tokens_set(self) -> set[str]:
        return set(self._special_tokens)

    def is_special_token(self, token: int) -> bool:
        assert isinstance(token, int), f"token must be an int, got {arguments.kind(token)}"
        return token in self._special_token_values

    @property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return self.max_token_value + 1

    # ---- What tiktoken has with an underscore, and others use

    @property
    def _core_bpe(self) -> CoreBPE:
        return CoreBPE(self)

    @functools.cached_property
    def _mergeable_ranks(self) -> dict[bytes, int]:
        return self._ranks.data if isinstance(self._ranks, RankFile) else self._ranks

    def _encode_single_piece(self, text_or_bytes: str | bytes) -> list[int]:
        """The ids of a piece that is not to be split."""
        return self._engine.encode_piece(_as_bytes(text_or_bytes))

    def _encode_only_native_bpe(self, text: str) -> list[int]:
        """`encode_ordinary` with the pattern run by the `regex` library, where no rules of text say otherwise."""
        if self.rules is not None:
            return self.encode_ordinary(text)
        pieces = patterns.pieces(self._pat_str, text)
        return [token for piece in pieces for token in self._encode_single_piece(piece)]

    def _encode_bytes(self, text: bytes) -> list[int]:
        """The ids of bytes that may end, or break, inside a character: what does not decode is one piece."""
        return unstable.encode_bytes(self._engine, text)

    def __getstate__(self) -> dict[str, Any]:
        state = {
            "name": self.name,
            "pat_str": self._pat_str,
            "mergeable_ranks": self._mergeable_ranks,
            "special_tokens": self._special_tokens,
        }
        return state if self.rules is None else state | {"rules": self.rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


_GROUP_CHARACTERS = 16 << 20  # whose ids the engine holds at a time while lists are made of them


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """`texts` in groups of so many characters, or of one text that has more."""
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= _GROUP_CHARACTERS:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    yield texts[start:] if start else texts


def _as_bytes(text_or_bytes: str | bytes) -> bytes:
    if isinstance(text_or_bytes, str):
        return text_or_bytes.encode("utf-8")
    if not isinstance(text_or_bytes, bytes):
        raise TypeError(f"text_or_bytes: expected a str or bytes, got {arguments.kind(text_or_bytes)}")
    return text_or_bytes
