"""Texts with labels, from tables (TSV, CSV), JSON Lines, or plain files of one label each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmfast.data.readers import JSON_LINES, file_kind, read_content

TABLES = {".tsv": "\t", ".csv": ","}


class LabeledText(NamedTuple):
    """One example."""

    text: str
    label: str


def read_labeled(sources: Sequence[str], *, text: str = "text", label: str = "label") -> Iterator[LabeledText]:
    """The examples in ``sources``, in order.

    A source is a ``.tsv``, ``.csv`` or ``.jsonl`` file with a column of texts and one of labels, or ``LABEL=FILE``, a
    file of which each line that is not blank is a text with that label. A table has a header if its first row holds the
    two names; without one it has two columns, the text first. Any file may be compressed (``.gz``, ``.zst``). Labels
    may be text, whole numbers or true and false.

    Args:
        sources: as above.
        text: name of the column of texts.
        label: name of the column of labels.

    Raises:
        ValueError: a file that is missing, of another kind, not UTF-8, or with a row that is no example; names the row.
    """
    if not sources:
        raise ValueError("give data.sources: files with texts and labels")
    for source in sources:
        name, separator, file = source.partition("=")
        if separator and not Path(source).exists():
            yield from _lines(_existing(file), name)
        elif (kind := file_kind(path := _existing(source))) in TABLES:
            yield from _table(path, TABLES[kind], text, label)
        elif kind in JSON_LINES:
            yield from _json_lines(path, text, label)
        else:
            raise ValueError(
                f"{path} is none of {', '.join([*TABLES, *JSON_LINES])}; a file of texts that share a label is "
                "given as LABEL=FILE"
            )


def _existing(file: str) -> Path:
    if not (path := Path(file)).is_file():
        raise ValueError(f"{file} is not a file")
    return path


def _lines(path: Path, label: str) -> Iterator[LabeledText]:
    for line in read_content(path).split("\n"):
        if text := line.strip():
            yield LabeledText(text, label)


def _table(path: Path, delimiter: str, text: str, label: str) -> Iterator[LabeledText]:
    # A tab-separated file has no quoting: a quotation mark is one.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(read_content(path), newline=""), delimiter=delimiter, quoting=quoting)
    places: tuple[int, int] | None = None
    columns = 2
    for row in rows:
        where = f"{path}:{rows.line_num}"
        if not row:
            continue
        if places is None:
            columns, places = len(row), (0, 1)
            if text in row and label in row:
                places = row.index(text), row.index(label)
                continue
            if columns != 2:
                raise ValueError(
                    f"{where} has {columns} columns and no header with {text!r} and {label!r}; data.text and "
                    "data.label name the columns"
                )
        if len(row) != columns:
            raise ValueError(f"{where} has {len(row)} columns where the first row has {columns}")
        yield _example(row[places[0]], row[places[1]], where)


def _json_lines(path: Path, text: str, label: str) -> Iterator[LabeledText]:
    for number, line in enumerate(read_content(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict) or text not in row or label not in row:
            raise ValueError(f"{where} has no {text!r} and {label!r}; data.text and data.label name the fields")
        yield _example(row[text], row[label], where)


def _example(text: object, label: object, where: str) -> LabeledText:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text")
    if not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"{where} has no label, but {label!r}")
    return LabeledText(text, str(label).strip())
