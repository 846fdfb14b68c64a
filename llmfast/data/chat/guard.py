"""Keeps what people write from becoming special tokens once a template has rendered it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from llmfast.data.chat.conversation import Conversation

PRIVATE_USE = range(0xE000, 0xF900)  # code points that mean nothing by themselves


class Guarded(NamedTuple):
    """A conversation, and the mark in it that keeps text from being a special token."""

    conversation: Conversation
    marks: str
    """Two characters that the conversation does not have, the first before what is not to be read as a special token,
    the second at ends and beginnings; empty where nothing had to be marked."""


class Guard:
    """Marks, in the strings of a conversation, what would be read as a special token of the rendered text.

    Where a message holds the text of a special token, each of its characters is marked, and so is an end or a beginning
    that could become one together with what a template puts beside it. All else, which is nearly everything, is
    rendered as it is.

    Args:
        specials: the texts of the special tokens.
        reserved: characters that cannot be marks: those of the template.
    """

    def __init__(self, specials: frozenset[str], reserved: str = ""):
        self._reserved = frozenset(reserved)
        texts = sorted(specials, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._beginnings = tuple({text[:size] for text in texts for size in range(1, len(text))})
        self._endings = tuple({text[size:] for text in texts for size in range(1, len(text))})

    def guarded(self, conversation: Conversation) -> Guarded:
        """The conversation with marks where they are needed."""
        strings = list(_strings([conversation.messages, conversation.tools]))
        if not any(map(self._needs_mark, strings)):
            return Guarded(conversation, "")
        used = self._reserved.union(*strings)
        marks = "".join(itertools.islice((char for char in map(chr, PRIVATE_USE) if char not in used), 2))
        messages, tools = _mapped([conversation.messages, conversation.tools], lambda text: self._marked(text, marks))
        return Guarded(replace(conversation, messages=messages, tools=tools), marks)

    def pieces(self, text: str, marks: str) -> Iterator[tuple[str, bool]]:
        """A rendered text as (piece, whether it is a special token), without marks."""
        without = dict.fromkeys(map(ord, marks))
        start = 0
        for start_of_token, end_of_token in self.tokens(text, marks):
            if ordinary := text[start:start_of_token].translate(without):
                yield ordinary, False
            yield text[start_of_token:end_of_token], True
            start = end_of_token
        if ordinary := text[start:].translate(without):
            yield ordinary, False

    def tokens(self, text: str, marks: str) -> Iterator[tuple[int, int]]:
        """Where the special tokens of a rendered text are, as (start, end)."""
        place = 0
        while found := self._any.search(text, place):
            start, end = found.span()
            if marks and text[start - 1 : start] == marks[0]:  # one of a single character, marked
                place = start + 1
                continue
            yield start, end
            place = end

    def _needs_mark(self, text: str) -> bool:
        body = text.strip()  # templates may trim
        return bool(self._any.search(text)) or body.endswith(self._beginnings) or body.startswith(self._endings)

    def _marked(self, text: str, marks: str) -> str:
        if not self._needs_mark(text):
            return text
        inside, edge = marks
        body = text.strip()
        start = text.index(body)
        head, tail = text[:start], text[start + len(body) :]
        head += edge if body.startswith(self._endings) else ""
        tail = (edge if body.endswith(self._beginnings) else "") + tail
        # Every character of a token is marked, so that no other token is found in it; the edge behind, so that none is
        # that begins in it.
        return head + self._any.sub(lambda found: "".join(inside + char for char in found[0]) + edge, body) + tail


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _strings(key)
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        # Roles are ours, and templates compare them.
        return {
            _mapped(key, function): each if key == "role" else _mapped(each, function) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, function) for each in value)
    return value
