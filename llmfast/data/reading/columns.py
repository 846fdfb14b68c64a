"""Named columns of files with rows: tables (TSV, CSV), JSON, JSON Lines and Parquet, each also compressed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmfast.data.reading.readers import (
    JSON,
    JSON_LINES,
    PARQUET,
    file_kind,
    json_records,
    parquet_records,
    read_content,
)

TABLES = {".tsv": "\t", ".csv": ","}
WITH_ROWS = (*TABLES, *JSON, *JSON_LINES, *PARQUET)


class Row(NamedTuple):
    """The wanted values of one row."""

    values: tuple[Any, ...]
    """In a table all of them are text."""
    where: str
    """The file with the line or the row, for messages."""


def read_columns(path: Path, names: Sequence[str], *, settings: str) -> Iterator[Row]:
    """The values of the columns ``names`` in each row of a file, in order; rows that are empty are passed over.

    A table has a header if its first row holds all the names. Without one it must have as many columns as there are
    names, which are then in their order.

    Args:
        path: a file whose suffix is one of ``WITH_ROWS``.
        names: the columns.
        settings: what names the columns, for messages: ``data.text and data.label name``.

    Raises:
        ValueError: a damaged file, or a row without those columns; names the row.
    """
    kind = file_kind(path)
    if kind in TABLES:
        yield from _table(path, TABLES[kind], names, settings)
    else:
        yield from _records(path, names, settings)


def text_lines(content: str) -> Iterator[str]:
    """The lines that are not blank, without the spaces around them; ``\\r\\n`` ends a line as ``\\n`` does.

    Other separators that Unicode knows, such as U+2028, are characters of a text.

    >>> list(text_lines("one\\r\\n \\n two\\u2028three"))
    ['one', 'two\\u2028three']
    """
    return filter(None, map(str.strip, content.split("\n")))


def _table(path: Path, delimiter: str, names: Sequence[str], settings: str) -> Iterator[Row]:
    # A tab-separated file has no quoting: a quotation mark is one.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(read_content(path), newline=""), delimiter=delimiter, quoting=quoting)
    places: list[int] | None = None
    columns = len(names)
    for row in rows:
        where = f"{path}:{rows.line_num}"
        if not row:
            continue
        if places is None:
            columns, places = len(row), list(range(len(names)))
            if all(name in row for name in names):
                places = [row.index(name) for name in names]
                continue
            if columns != len(names):
                raise ValueError(
                    f"{where} has {columns} columns and no header with {_listed(names)}; {settings} the columns"
                )
        if len(row) != columns:
            raise ValueError(f"{where} has {len(row)} columns where the first row has {columns}")
        yield Row(tuple(row[place] for place in places), where)


def _records(path: Path, names: Sequence[str], settings: str) -> Iterator[Row]:
    for where, record in (parquet_records if file_kind(path) in PARQUET else json_records)(path):
        if not all(name in record for name in names):
            raise ValueError(f"{where} has no {_listed(names)}; {settings} the fields")
        yield Row(tuple(record[name] for name in names), where)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
