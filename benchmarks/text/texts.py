"""Documents that tokenizers are measured on, and what every machine with Python has: its library, and made-up words."""

from __future__ import annotations

import functools
import os
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("LLMFAST_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
DOCUMENT = 16_384  # characters
# Letters of scripts that are written differently: with and without spaces, one to three bytes a letter.
SCRIPTS = {
    "Cyrillic": (0x0430, 0x044F),
    "Greek": (0x03B1, 0x03C9),
    "Arabic": (0x0627, 0x063A),
    "Devanagari": (0x0915, 0x0939),
    "Hiragana": (0x3041, 0x3093),
    "Han": (0x4E00, 0x9FA0),
    "Hangul": (0xAC00, 0xD7A3),
}


@dataclass(frozen=True)
class Text:
    """Documents of one kind, and where they are from."""

    origin: str
    documents: list[str]

    @property
    def whole(self) -> str:
        return "".join(self.documents)

    @property
    def bytes(self) -> int:
        return sum(len(document.encode()) for document in self.documents)

    def __str__(self) -> str:
        return f"{self.origin}, {self.bytes / 1e6:.2g} MB in documents of {DOCUMENT:,} characters"


@functools.cache
def code() -> tuple[str, str]:
    return "Python's standard library", "".join(sources())


def sources() -> Iterator[str]:
    """The modules of Python's standard library, without those that are installed beside it."""
    for module in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in module.parts:
            yield module.read_text(encoding="utf-8", errors="replace")


def made_up(characters: int) -> str:
    """Sentences of random letters, some paragraphs of each script in turn; the same every time."""
    draw = random.Random(0)
    parts, length = [], 0
    while length < characters:
        for first, last in SCRIPTS.values():
            words = ["".join(chr(draw.randint(first, last)) for _ in range(draw.randint(2, 9))) for _ in range(400)]
            parts.append(" ".join(words) + ".\n")
            length += len(parts[-1])
    return "".join(parts)
