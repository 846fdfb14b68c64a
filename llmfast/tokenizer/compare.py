"""How many tokens different tokenizers make of the same texts: by file, by label, and by script.

A label is what the caller names a file by, such as its language or its domain. A script is how letters are written, not
a language: English and Vietnamese are both Latin.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.opening import open_tokenizer

_SCRIPTS = (
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Thai",
    "Hangul",
    "Hiragana",
    "Katakana",
    "Han",
)
_LETTERS = regex.compile(
    "|".join(rf"(?P<{script}>\p{{Script={script}}}+)" for script in _SCRIPTS) + r"|(?P<other_scripts>\p{L}+)"
)
_KANA = {"Hiragana", "Katakana"}


@dataclass(frozen=True)
class Row:
    """Sizes of one text: `tokens` has one count for each encoding."""

    text: str
    n_bytes: int
    n_characters: int
    tokens: tuple[int, ...]

    @property
    def bytes_per_token(self) -> tuple[float, ...]:
        return tuple(self.n_bytes / count if count else 0.0 for count in self.tokens)


@dataclass(frozen=True)
class Comparison:
    """Rows by file, by label of the files, and by the script of the lines; ``str()`` lays them out as a table."""

    encodings: tuple[str, ...]
    files: tuple[Row, ...]
    scripts: tuple[Row, ...]
    labels: tuple[Row, ...] = ()

    def __str__(self) -> str:
        units = [f"{name} {unit}" for name in self.encodings for unit in ("tokens", "bytes/token")]
        lines = [["file", "bytes", *units], *map(self._cells, self.files)]
        nothing = [""] * (1 + len(units))
        if self.labels:
            lines += [["", *nothing], ["label", *nothing], *map(self._cells, self.labels)]
        if len(self.scripts) > 1:
            lines += [["", *nothing], ["script of the lines", *nothing], *map(self._cells, self.scripts)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_aligned(line, widths) for line in lines)

    @staticmethod
    def _cells(row: Row) -> list[str]:
        pairs = zip(row.tokens, row.bytes_per_token, strict=True)
        return [
            row.text,
            f"{row.n_bytes:,}",
            *(cell for count, rate in pairs for cell in (f"{count:,}", f"{rate:.3f}")),
        ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers = cells
    aligned = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *aligned]).rstrip()


def compare(
    texts: Iterable[str | os.PathLike[str] | tuple[str, str | os.PathLike[str]]],
    encodings: Iterable[str | os.PathLike[str] | Encoding] = ("gpt2", "cl100k_base", "o200k_base"),
) -> Comparison:
    """Counts the tokens of UTF-8 files under several encodings.

    Args:
        texts: the files; or pairs of a label and a file, of which those with one label are counted together as well.
        encodings: names and paths that `open_tokenizer` knows, or encodings.

    Returns:
        Tokens and bytes per token, for each file, for all files of each label, and for the lines of each script in all
        of them together. A line
        belongs to the script that most of its letters have, whatever its language; Han and kana in one line are one
        script, ``Han with kana``. A line whose letters are all of other scripts than those counted is ``other
        scripts``, one without letters ``no letters``.

    Raises:
        FileNotFoundError: a text or a tokenizer that does not exist.
        ValueError: there is no text or no encoding, or a file is not UTF-8.
    """
    named = [text if isinstance(text, tuple) else (None, text) for text in texts]
    encodings = list(encodings)
    if not named or not encodings:
        raise ValueError("give at least one text and one encoding to compare")
    chosen = [one if isinstance(one, Encoding) else open_tokenizer(one) for one in encodings]
    files = []
    by_script: dict[str, list[str]] = {}
    by_label: dict[str, list[Row]] = {}
    for label, path in named:
        text = _read(Path(path))
        files.append(row_of(str(path), text, chosen))
        if label is not None:
            by_label.setdefault(label, []).append(files[-1])
        for line in text.splitlines(keepends=True):
            by_script.setdefault(_script(line), []).append(line)
    scripts = [row_of(script, "".join(lines), chosen) for script, lines in sorted(by_script.items())]
    labels = [_sum(label, rows) for label, rows in sorted(by_label.items())]
    names = tuple(encoding.name for encoding in chosen)
    return Comparison(names, tuple(files), tuple(scripts), tuple(labels))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def row_of(name: str, text: str, encodings: Sequence[Encoding]) -> Row:
    """The sizes of one text, called ``name``."""
    return Row(name, len(text.encode()), len(text), tuple(encoding.count(text) for encoding in encodings))


def _sum(name: str, rows: Sequence[Row]) -> Row:
    tokens = (sum(counts) for counts in zip(*(row.tokens for row in rows), strict=True))
    return Row(name, sum(row.n_bytes for row in rows), sum(row.n_characters for row in rows), tuple(tokens))


def _script(line: str) -> str:
    letters: Counter[str] = Counter()
    for match in _LETTERS.finditer(line):
        letters[(match.lastgroup or "").replace("_", " ")] += len(match.group())
    if not letters:
        return "no letters"
    if letters.keys() & _KANA:
        letters["Han with kana"] = sum(letters.pop(script, 0) for script in ("Han", *_KANA))
    return max(letters, key=letters.__getitem__)
