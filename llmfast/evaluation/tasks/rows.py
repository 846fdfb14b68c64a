"""Rows of evaluation data, from local files or from the Hugging Face hub, whose fields are checked as they are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.data.reading import datasets_hub
from llmfast.data.reading.readers import PARQUET, file_kind, json_records, parquet_records


@dataclass(frozen=True)
class Row:
    """A row and where it is; a field that is missing or of another kind is an error that says where."""

    fields: Mapping[str, Any]
    where: str

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def value(self, name: str) -> Any:
        """A field.

        Raises:
            ValueError: it is missing or null.
        """
        if name not in self:
            raise ValueError(f"{self.where} has no field {name}; its fields are {', '.join(self.fields) or 'none'}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A field that is text."""
        value = self.value(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {name} must be text, got {value!r}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of texts, at least one."""
        value = self.value(name)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{self.where}: {name} must be a list of texts, got {value!r}")
        return tuple(value)

    def label(self, name: str, count: int, *, first: int = 0) -> int:
        """Which of ``count`` answers is right, from 0, of a field that counts from ``first``; digits or a number."""
        value = self.value(name)
        try:
            label = int(value) - first
        except (TypeError, ValueError):
            label = -1
        if not 0 <= label < count or isinstance(value, float):
            raise ValueError(f"{self.where}: {name} must be from {first} to {first + count - 1}, got {value!r}")
        return label


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a JSON, JSON Lines or Parquet file, also compressed.

    Where labels are published in a file of their own, as those of PIQA are, its lines are the field ``label``:
    ``valid-labels.lst`` beside ``valid.jsonl``.

    Raises:
        ValueError: it is missing or damaged, or there is not one label for each row.
    """
    if not path.is_file():
        raise ValueError(f"data: {path} is not a file")
    read = parquet_records if file_kind(path) in PARQUET else json_records
    rows = (Row(record, where) for where, record in read(path))
    labels = path.with_name(f"{path.stem}-labels.lst")
    return _with_labels(rows, labels) if labels.is_file() else rows


def _with_labels(rows: Iterator[Row], file: Path) -> Iterator[Row]:
    labels = file.read_text("utf-8").split()
    for row, label in itertools.zip_longest(rows, labels):
        if row is None or label is None:
            than = "more" if row is None else "fewer"
            raise ValueError(f"{file} has {len(labels)} labels, {than} than there are rows")
        yield Row({"label": label, **row.fields}, row.where)


def rows_of_hub(name: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a split of a dataset of the Hugging Face hub, streamed.

    Raises:
        ValueError: it cannot be loaded.
    """
    rows = datasets_hub.load_split(datasets_hub.Hub(name, config=config), split, source=f"{name}:{split}")
    return rows_of(rows, f"{name}:{split}")


def rows_of(records: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    """Rows of records that are at hand, numbered from 1."""
    return (Row(record, f"{name}, row {number}") for number, record in enumerate(records, 1))
