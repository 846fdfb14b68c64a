"""A tokenizer that brings text into one of Unicode's normal forms first, as the Qwen family does."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import regex

from llmfast.tokenizer import patterns
from llmfast.tokenizer.tokenizer import Tokenizer


class NormalizingTokenizer(Tokenizer):
    """Every method that takes text works on its normalization form C; special tokens stay as they are."""

    _normalization = "NFC"

    def _normal(self, text: str) -> str:
        if unicodedata.is_normalized("NFC", text):
            return text
        parts = self._specials_in_text.split(text)
        parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
        return "".join(parts)

    @functools.cached_property
    def _specials_in_text(self) -> regex.Pattern:
        by_length = sorted(self._special_tokens, key=len, reverse=True)
        return regex.compile("(" + ("|".join(map(regex.escape, by_length)) or r"(?!)") + ")")

    def encode_ordinary(self, text: str) -> list[int]:
        return super().encode_ordinary(self._normal(text))

    def encode(self, text: str, **specials) -> list[int]:
        return super().encode(self._normal(text), **specials)

    def encode_to_numpy(self, text: str, **specials):
        return super().encode_to_numpy(self._normal(text), **specials)

    def encode_ordinary_batch(self, text: list[str], **options) -> list[list[int]]:
        return super().encode_ordinary_batch([self._normal(one) for one in text], **options)

    def encode_batch(self, text: list[str], **options) -> list[list[int]]:
        return super().encode_batch([self._normal(one) for one in text], **options)

    def encode_documents(self, documents: Sequence[str | patterns.Buffer], **options):
        texts = [one if isinstance(one, str) else str(one, "utf-8", "replace") for one in documents]
        return super().encode_documents([self._normal(text) for text in texts], **options)

    def encode_iterable(self, chunks: Iterable[str]) -> Iterator[int]:
        return super().encode_iterable(self._normal(text) for text in _cut_safely(self._pat_str, chunks))

    def count(self, text: str) -> int:
        return super().count(self._normal(text))

    def encode_with_unstable(self, text: str, **specials) -> tuple[list[int], list[list[int]]]:
        return super().encode_with_unstable(self._normal(text), **specials)


def _cut_safely(pat_str: str, chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks that end where normalizing has nothing to join."""
    kept = ""
    for chunk in chunks:
        kept += chunk
        cut = patterns.last_certain_boundary(pat_str, kept)
        if cut > 0:
            yield kept[:cut]
            kept = kept[cut:]
    yield kept
