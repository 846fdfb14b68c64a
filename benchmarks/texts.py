"""The texts that tokenizers are measured on: real ones where they are at hand, else what every machine with Python has.

``LLMFAST_TEST_DATA`` names a folder with ``text/dickens.txt`` and ``text/multilingual.txt``. Without it English is the
docstrings of Python's own library, and the text of several scripts is made up: words of random letters, which a
vocabulary knows less of than of any language. A result file says which it was.
"""

from __future__ import annotations

import ast
import functools
import os
import random
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("LLMFAST_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
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


def texts(megabytes: float, files: Sequence[Path] = ()) -> dict[str, Text]:
    """At most so much of each of the given files, or of English, code and several scripts."""
    if files:
        kinds = {path.name: ("a file of this name", path.read_text(encoding="utf-8")) for path in files}
    else:
        kinds = {"English": english(), "code": code(), "multilingual": multilingual()}
    return {kind: Text(origin, spread(text, megabytes)) for kind, (origin, text) in kinds.items()}


def spread(text: str, megabytes: float) -> list[str]:
    """Documents taken evenly from all over the text, for its parts may be in different languages."""
    documents = [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
    share = min(1.0, megabytes * 1e6 / max(len(text.encode()), 1))
    count = max(1, round(share * len(documents)))
    return [documents[index * len(documents) // count] for index in range(count)]


@functools.cache
def english() -> tuple[str, str]:
    path = DATA / "text" / "dickens.txt"
    if path.is_file():
        return "five novels of Charles Dickens", path.read_text(encoding="utf-8")
    return "docstrings of Python's standard library", "\n\n".join(docstrings())


@functools.cache
def code() -> tuple[str, str]:
    return "Python's standard library", "".join(sources())


@functools.cache
def multilingual() -> tuple[str, str]:
    path = DATA / "text" / "multilingual.txt"
    if path.is_file():
        origin = "technical prose in Japanese, Korean, Chinese, Arabic and Russian, with code in between"
        return origin, path.read_text(encoding="utf-8")
    return f"made up: words of random letters of {', '.join(SCRIPTS)}", made_up(2_000_000)


def sources() -> Iterator[str]:
    """The modules of Python's standard library, without those that are installed beside it."""
    for module in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in module.parts:
            yield module.read_text(encoding="utf-8", errors="replace")


def docstrings() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for source in sources():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # among the files of its tests are some that are wrong on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, documented) and (found := ast.get_docstring(node)):
                yield found


def made_up(characters: int) -> str:
    """Sentences of random letters, some paragraphs of each script in turn; the same every time."""
    draw = random.Random(0)
    parts, length = [], 0
    while length < characters:
        for first, last in SCRIPTS.values():
            words = [
                "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(2, 9))) for _ in range(400)
            ]
            parts.append(" ".join(words) + ".\n")
            length += len(parts[-1])
    return "".join(parts)
