"""Finds several texts in another one: the leftmost, and the longest of those that start together."""

from __future__ import annotations

import functools
import itertools
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator


class TextFinder:
    """Finds `texts`, of which none is empty. What is found does not overlap.

    >>> list(TextFinder(["ab", "abc", "c"]).spans("abcab c"))
    [(0, 3), (3, 5), (6, 7)]
    """

    def __init__(self, texts: Iterable[str]):
        self._texts = sorted(set(texts))
        self._longest = max(map(len, self._texts), default=0)
        expression, self._is_exact = _expression(self._texts) if self._texts else (r"(?!)", True)
        self._pattern = re.compile(expression)

    def spans(self, text: str, start: int = 0) -> Iterator[tuple[int, int]]:
        """Where each text that is found starts and ends, from `start` on."""
        if self._is_exact:
            for match in self._pattern.finditer(text, start):
                yield match.span()
            return
        while match := self._pattern.search(text, start):
            found = self._longest_at(text, match.start())
            if found:
                yield match.start(), match.start() + found
            start = match.start() + max(found, 1)

    def first(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """The first of `spans`."""
        return next(self.spans(text, start), None)

    def _longest_at(self, text: str, start: int) -> int:
        """The length of the longest of the texts that starts there; 0 if there is none."""
        # The last of the texts that is not above `text` begins like it for as long as any of them does.
        which = bisect_right(self._texts, text[start : start + self._longest]) - 1
        while which >= 0:
            if text.startswith(self._texts[which], start):
                return len(self._texts[which])
            which = self._prefix_of[which]
        return 0

    @functools.cached_property
    def _prefix_of(self) -> list[int]:
        """For each text, the index of the longest other one that it begins with, or -1."""
        found: list[int] = []
        for i, text in enumerate(self._texts):
            which = i - 1
            while which >= 0 and not text.startswith(self._texts[which]):
                which = found[which]
            found.append(which)
        return found


_MOST_LEVELS = 40  # of groups in each other, which `re` compiles by recursion


def _expression(texts: list[str], level: int = 0) -> tuple[str, bool]:
    """An expression for the longest of the sorted texts, in which each prefix that several share is written once.

    To try thousands of texts one after the other at every "<" would take as many steps.

    Returns:
        The expression, and whether it matches the texts and nothing else. Where each text is the beginning of the next
        over many levels, it matches only what they have in common there.

    >>> _expression(["a", "abc", "abd", "x"])
    ('(?:a(?:b(?:c|d)|)|x)', True)
    """
    if len(texts) == 1:
        return re.escape(texts[0]), True
    if level == _MOST_LEVELS:
        return "", False
    branches, is_exact = [], True
    for _, group in itertools.groupby(texts, key=lambda text: text[:1]):
        members = list(group)
        shared = os.path.commonprefix([members[0], members[-1]])  # noqa: RUF071 - of characters, as is meant
        if not shared:  # a text that ends here
            branches.append("")
            continue
        rest, rest_is_exact = _expression([text[len(shared) :] for text in members], level + 1)
        branches.append(re.escape(shared) + rest)
        is_exact &= rest_is_exact
    # What ends here comes behind what would make it longer.
    return f"(?:{'|'.join(sorted(branches, key=lambda branch: branch == ''))})", is_exact
