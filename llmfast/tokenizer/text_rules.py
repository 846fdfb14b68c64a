"""A tokenizer that reads text by the rules which Hugging Face's files may state beside byte-level BPE.

The text may be brought into a normal form first, as the Qwen family does, and added tokens may be found by rules of
their own: with the white space beside them, as whole words only, or in normalized text.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import regex

from llmfast.tokenizer import huggingface, patterns
from llmfast.tokenizer.encoding import check_disallowed
from llmfast.tokenizer.tokenizer import Tokenizer

# What counts as a word's character and as white space in Rust's regular expressions, which Hugging Face uses here.
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
_SPACE = regex.compile(r"\p{White_Space}*")
_SPACE_BEFORE = regex.compile(r"(?r)\p{White_Space}*")


def are_needed(contents: huggingface.Contents) -> bool:
    """Whether the engine's own search for special tokens would not find the same."""
    return contents.normalization is not None or _flags_act(contents)


# What other characters become ASCII when they are normalized: the Kelvin sign, the Greek question mark, a Greek accent.
_MADE_BY_NORMALIZING = frozenset("K;`")


def _flags_act(contents: huggingface.Contents) -> bool:
    if any(
        flags.get(rule) for flags in contents.flags.values() for rule in ("single_word", "lstrip", "rstrip")
    ):
        return True
    late = [text for text, flags in contents.flags.items() if flags.get("normalized")]
    if contents.normalization and (late or not all(map(_survives_normalizing, contents.special_tokens))):
        return True
    first = contents.special_tokens.keys() - late
    return any(_may_overlap(one, other) for one in late for other in first)


def _survives_normalizing(special: str) -> bool:
    """Whether normalized text holds it just where the text itself did."""
    return special.isascii() and _MADE_BY_NORMALIZING.isdisjoint(special)


def _may_overlap(one: str, other: str) -> bool:
    ends = range(1, min(len(one), len(other)) + 1)
    return (
        one in other or other in one or any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in ends)
    )


class TextRulesTokenizer(Tokenizer):
    """Every method that takes text works on its normal form; special tokens stay as they are.

    Where special tokens are allowed, those that are not `normalized` are found first, then the others in the normal
    form of the text between. One with `lstrip` takes the white space before it, one with `rstrip` that behind it, and
    one that is a `single_word` counts only where no letter, digit or underscore stands beside it.
    """

    def encode_ordinary(self, text: str) -> list[int]:
        return super().encode_ordinary(self._normal(text))

    def encode(self, text: str, **specials) -> list[int]:
        if not self._flags_act:
            return super().encode(self._normal(text), **specials)
        ids: list[int] = []
        for part in self._parts(text, **specials):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(super().encode_ordinary(part))
        return ids

    def encode_to_numpy(self, text: str, **specials):
        if not self._flags_act:
            return super().encode_to_numpy(self._normal(text), **specials)
        return np.array(self.encode(text, **specials), dtype=np.uint32)

    def encode_ordinary_batch(self, text: list[str], **options) -> list[list[int]]:
        return super().encode_ordinary_batch([self._normal(one) for one in text], **options)

    def encode_batch(self, text: list[str], *, num_threads: int | None = 8, **specials) -> list[list[int]]:
        if not self._flags_act:
            normal = [self._normal(one) for one in text]
            return super().encode_batch(normal, num_threads=num_threads, **specials)
        return [self.encode(one, **specials) for one in text]

    def encode_documents(self, documents: Sequence[str | patterns.Buffer], **options):
        return super().encode_documents([self._normal_document(one) for one in documents], **options)

    def _normal_document(self, document: str | patterns.Buffer) -> str | bytes:
        if isinstance(document, str):
            return self._normal(document)
        text = str(document, "utf-8", "surrogateescape")  # bytes that are not UTF-8 stay as they are
        return self._normal(text).encode("utf-8", "surrogateescape")

    def count(self, text: str) -> int:
        return super().count(self._normal(text))

    def encode_with_unstable(self, text: str, **specials) -> tuple[list[int], list[list[int]]]:
        if not self._flags_act:
            return super().encode_with_unstable(self._normal(text), **specials)
        *parts, last = [*self._parts(text, **specials), ""]
        if parts and isinstance(parts[-1], str):
            last = parts.pop()
        ids = [
            token
            for part in parts
            for token in ([part] if isinstance(part, int) else Tokenizer.encode_ordinary(self, part))
        ]
        stable, completions = super().encode_with_unstable(last, disallowed_special=())
        return ids + stable, completions

    # ---- The normal form

    def _normal(self, text: str) -> str:
        if self._normalization is None or unicodedata.is_normalized(self._normalization, text):
            return text
        parts = self._specials_in_text.split(text)
        parts[::2] = [unicodedata.normalize(self._normalization, part) for part in parts[::2]]
        return "".join(parts)

    @functools.cached_property
    def _specials_in_text(self) -> regex.Pattern:
        return regex.compile(f"({_any_of(self._special_tokens)})")

    # ---- Added tokens with rules of their own

    def _rules_of_specials(self) -> list[str]:
        rules = {
            text: sorted(rule for rule, is_set in flags.items() if is_set and rule != "special")
            for text, flags in sorted(self._flags.items())
        }
        return [f"{text}:{','.join(rules[text])}" for text in rules if rules[text]] if self._flags_act else []

    @functools.cached_property
    def _flags_act(self) -> bool:
        return _flags_act(self._contents)

    def _parts(
        self,
        text: str,
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = "all",
    ) -> Iterator[str | int]:
        """Normalized stretches of ordinary text, and the ids of the special tokens between them."""
        every = self._special_tokens.keys()
        allowed = every if allowed_special == "all" else frozenset(allowed_special)
        disallowed = every - allowed if disallowed_special == "all" else disallowed_special
        if disallowed:
            check_disallowed(text, disallowed)
        first, late = self._searches(frozenset(every & allowed))
        for part in first.split(patterns.joined_surrogates(text)):
            if isinstance(part, int):
                yield part
            else:
                yield from late.split(self._normalized(part))

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize(self._normalization, text) if self._normalization else text

    @functools.lru_cache(maxsize=16)  # noqa: B019 - few tokenizers have rules, and they live as long as the program
    def _searches(self, wanted: frozenset[str]) -> tuple[_Search, _Search]:
        """What finds the wanted tokens in the text as it is, and what finds them in normalized text."""
        late = {text for text in wanted if self._flags.get(text, {}).get("normalized")}

        def search(texts: Iterable[str], written) -> _Search:
            tokens = {
                written(text): (self._special_tokens[text], self._flags.get(text, {})) for text in texts
            }
            return _Search(regex.compile(_any_of(tokens)), tokens)

        return search(wanted - late, str), search(late, self._normalized)


class _Search(NamedTuple):
    pattern: regex.Pattern
    tokens: dict[str, tuple[int, dict[str, bool]]]  # as written -> id, rules

    def split(self, text: str) -> Iterator[str | int]:
        at = 0
        for match in self.pattern.finditer(text):
            start, stop = match.span()
            token, rules = self.tokens[match.group()]
            if rules.get("single_word") and (
                (start > 0 and _WORD.match(text, start - 1)) or _WORD.match(text, stop)
            ):
                continue
            if rules.get("lstrip"):
                start = max(at, _SPACE_BEFORE.match(text, endpos=start).start())
            if rules.get("rstrip"):
                stop = _SPACE.match(text, stop).end()
            if at < start:
                yield text[at:start]
            yield token
            at = stop
        if at < len(text):
            yield text[at:]


def _any_of(texts: Iterable[str]) -> str:
    """The expression for the longest of the texts that starts at a place; for none it matches nowhere."""
    return "|".join(map(regex.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
