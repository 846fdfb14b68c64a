"""Tokens as HTML: each with a color of its own and a note that appears while it is pointed at."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmfast.app.background import Token

# Backgrounds that leave text readable on a light and on a dark page: contrast stays above 4.5 to 1.
_ALTERNATING = ("91,124,250", "20,160,120", "220,120,20", "200,70,120", "130,90,220")
_SURE, _UNSURE = 0.0, 0.42

STYLE = """
<style>
.tokens {
  position: relative; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; padding-bottom: 2.6rem;
}
.tokens span { border-radius: .2rem; padding: .1rem 0; margin-right: 1px; }
.tokens span:hover { outline: 2px solid currentColor; }
.tokens span::after {
  content: attr(data-note); display: none; position: absolute; left: 0; bottom: 0; max-width: 100%;
  padding: .2rem .6rem; border-radius: .4rem; background: #1a1c20; color: #ffffff; font-size: .85rem; line-height: 1.4;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; pointer-events: none;
}
.tokens span:hover::after { display: block; }
</style>
"""


class Mark(NamedTuple):
    """A token as it is shown."""

    text: str
    note: str
    color: str
    """Red, green, blue and opacity, as in CSS."""


def alternating(texts: Iterable[str], notes: Iterable[str]) -> list[Mark]:
    """Neighbors in different colors."""
    pairs = enumerate(zip(texts, notes, strict=True))
    return [Mark(text, note, f"{_ALTERNATING[index % len(_ALTERNATING)]},.3") for index, (text, note) in pairs]


def by_probability(tokens: Sequence[Token]) -> list[Mark]:
    """The less likely a token was, the stronger its color."""
    return [_by_probability(token) for token in tokens]


def _by_probability(token: Token) -> Mark:
    if token.probability is None:
        return Mark(token.text, f"{token.text!r}", "0,0,0,0")
    opacity = _UNSURE + (_SURE - _UNSURE) * token.probability
    return Mark(token.text, f"{token.text!r} {token.probability:.1%}; {likeliest(token)}", f"220,120,20,{opacity:.2f}")


def likeliest(token: Token) -> str:
    """The likeliest tokens at the place of one, in words."""
    best = sorted(token.alternatives.items(), key=lambda each: -each[1])
    return "likeliest: " + ", ".join(f"{text!r} {probability:.1%}" for text, probability in best)


def marked(marks: Iterable[Mark]) -> str:
    """HTML of tokens in a row."""
    spans = (
        f'<span data-note="{html.escape(each.note)}" style="background:rgba({each.color})">{_visible(each.text)}</span>'
        for each in marks
    )
    return f'{STYLE}<div class="tokens">{"".join(spans)}</div>'


def _visible(text: str) -> str:
    """Text in which line ends can be seen, too."""
    return html.escape(text).replace("\n", "⏎\n")
