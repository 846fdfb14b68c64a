"""Rules for reading text in addition to those of byte-level BPE, as files of Hugging Face may state them.

Text may be normalized first, added tokens may be found by rules of their own, and what cuts text into pieces, merges
them or joins their texts may be something that the engine does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import regex

from llmfast.tokenizer.finding import TextFinder
from llmfast.tokenizer.huggingface.added_tokens import FLAGS, AddedToken
from llmfast.tokenizer.huggingface.byte_text import decodes_to_itself

NFC = {"type": "NFC"}


@dataclass(frozen=True)
class TextRules:
    """What a file says beside pattern, ranks and special tokens. JSON objects are as the file has them.

    Attributes:
        added: all added tokens, the special ones among them.
        normalizer: applied to the text between added tokens; None for none.
        prefix_space: whether a stretch of text that does not begin with a space gets one.
        digits: "each" if each digit is a piece of its own, "runs" if each run of them is; None for no such rule.
        steps: a pre-tokenizer that is not one pattern; None if the pattern cuts the text.
        model: a model that the engine cannot merge by; None if the ranks say the same.
        ids: the id of each rank; None where they are the same.
        decoded: the bytes of tokens that the ranks do not have, or that decode otherwise than they are written.
        decoder: None for the byte-level one; else it, and the texts of the tokens that it joins.
        trims: for each step of the post-processor that trims offsets, whether text may begin with a space of its own.
    """

    added: tuple[AddedToken, ...] = ()
    normalizer: dict[str, Any] | None = None
    prefix_space: bool = False
    digits: str | None = None
    steps: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    ids: tuple[int, ...] | None = None
    decoded: dict[int, bytes] = field(default_factory=dict)
    decoder: tuple[Any, dict[int, str]] | None = None
    trims: tuple[bool, ...] = ()

    def replace(self, **changes: Any) -> TextRules:
        """These rules with some changed."""
        return dataclasses.replace(self, **changes)

    @functools.cached_property
    def always(self) -> tuple[AddedToken, ...]:
        """The added tokens that are ordinary text to the caller, and always found."""
        return tuple(token for token in self.added if not token.special)

    @functools.cached_property
    def always_found(self) -> frozenset[str]:
        """The texts of these tokens."""
        return frozenset(token.content for token in self.always)

    def with_added(self, special_tokens: Mapping[str, int], ids: Mapping[str, int], special: bool) -> TextRules:
        """These rules with more added tokens, for a tokenizer with these special tokens, which they then name, too."""
        known = {token.content for token in self.added}
        added = [AddedToken(text, number) for text, number in special_tokens.items() if text not in known]
        added += [AddedToken(text, number, special=special) for text, number in ids.items()]
        return self.replace(added=(*self.added, *added))

    @property
    def are_needed(self) -> bool:
        """Whether the rules change anything."""
        return bool(self.decoded or self.trims or self.decoder) or self.change_ids or not self._decode_as_written

    @property
    def _decode_as_written(self) -> bool:
        """Whether each added token decodes to its text: each id has one, and none is taken for byte characters."""
        if self.normalizer and any(token.normalized for token in self.added):
            return False
        return len({token.id for token in self.added}) == len(self.added) and all(
            decodes_to_itself(token.content) for token in self.added
        )

    @functools.cached_property
    def change_ids(self) -> bool:
        """Whether the rules change the ids of some text."""
        parts = (
            self.normalizer,
            self.prefix_space,
            self.steps is not None,
            self.model,
            self.ids,
            self.always,
        )
        return any(parts) or self.need_search

    @functools.cached_property
    def need_search(self) -> bool:
        """Whether the engine's own search for added tokens would find others."""
        if self.prefix_space or self.digits or self.steps is not None or self.normalizer not in (None, NFC):
            return True
        if any(token.single_word or token.lstrip or token.rstrip for token in self.added):
            return True
        late = [token.content for token in self.added if token.normalized]
        if self.normalizer and (late or not all(_survives_normalizing(token.content) for token in self.added)):
            return True
        first = {token.content for token in self.added}.difference(late)
        if sum(map(len, late)) * sum(map(len, first)) > _MOST_COMPARED:
            return True
        return any(_may_overlap(one, other) for one in late for other in first)

    @property
    def can_be_cut(self) -> bool:
        """Whether a text can be cut where its pieces end, and its parts read one by one."""
        if self.prefix_space or self.steps is not None or self.normalizer not in (None, NFC):
            return False
        return not (self.normalizer and any(token.normalized for token in self.added))

    def described(self) -> list[str]:
        """All that decides ids, as texts that differ where the rules do."""
        if not self.change_ids:
            return []
        flags = {
            token.content: ",".join(sorted(name for name in FLAGS if name != "special" and getattr(token, name)))
            for token in sorted(self.added)
        }
        lines = [f"{text}:{names}" for text, names in flags.items() if names and self.need_search]
        lines += [f"{token.content}={token.id}" for token in self.always]
        if self.prefix_space:
            lines.append("prefix_space")
        if self.digits:
            lines.append(f"digits {self.digits}")
        if self.normalizer not in (None, NFC):
            lines.append("normalizer " + _dumped(self.normalizer))
        if self.steps is not None:
            lines.append("steps " + _dumped(self.steps))
        if self.model:
            lines.append("model " + _dumped(self.model))
        if self.ids:
            lines.append("ids " + " ".join(map(str, self.ids)))
        return lines


def _dumped(part: Any) -> str:
    return json.dumps(part, sort_keys=True)


# What other characters become ASCII when they are normalized: the Kelvin sign, the Greek question mark, a Greek accent.
_MADE_BY_NORMALIZING = frozenset("K;`")


def _survives_normalizing(text: str) -> bool:
    """Whether normalized text holds it just where the text itself did."""
    return text.isascii() and _MADE_BY_NORMALIZING.isdisjoint(text)


_MOST_COMPARED = 4_000_000  # pairs of characters


def _may_overlap(one: str, other: str) -> bool:
    ends = range(1, min(len(one), len(other)) + 1)
    return one in other or other in one or any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in ends)


# ---- Finding added tokens

# What counts as a word's character and as white space in Rust's regular expressions, which Hugging Face uses here.
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
_SPACE = regex.compile(r"\p{White_Space}*")
_SPACE_BEFORE = regex.compile(r"(?r)\p{White_Space}*")


class Search:
    """Finds added tokens, the leftmost and the longest of those that start together, with the white space they take.

    Args:
        tokens: by how they are written in the text that is searched.
    """

    def __init__(self, tokens: dict[str, AddedToken]):
        self.tokens = tokens
        self._finder = TextFinder(tokens)

    def split(self, text: str) -> Iterator[tuple[int, int, AddedToken | None]]:
        """Where each stretch of `text` starts and ends, and which token it is, or None for text between tokens."""
        at = 0
        for start, stop in self._finder.spans(text) if self.tokens else ():
            token = self.tokens[text[start:stop]]
            if token.single_word and ((start > 0 and _WORD.match(text, start - 1)) or _WORD.match(text, stop)):
                continue
            if token.lstrip:
                start = max(at, start - _length(_SPACE_BEFORE.match(text, endpos=start)))
            if token.rstrip:
                stop += _length(_SPACE.match(text, stop))
            if at < start:
                yield at, start, None
            if start < stop:  # white space that the token before has taken may be all of it
                yield start, stop, token
                at = stop
        if at < len(text):
            yield at, len(text), None


def _length(match: regex.Match[str] | None) -> int:
    return len(match.group()) if match else 0
