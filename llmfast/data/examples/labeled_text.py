"""Texts with labels or numbers, from files with rows, or plain files of one label each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmfast.data.config import LabeledDataConfig
from llmfast.data.reading.columns import WITH_ROWS, read_columns, text_lines
from llmfast.data.reading.readers import file_kind, read_content

Target = str | tuple[str, ...] | float
"""A label; any number of labels (multi-label); a number (regression)."""


class LabeledText(NamedTuple):
    """One example."""

    text: str
    target: Target

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels: one, or any number with multi-label targets; none if the target is a number."""
        if isinstance(self.target, str):
            return (self.target,)
        return self.target if isinstance(self.target, tuple) else ()


def read_labeled(config: LabeledDataConfig) -> Iterator[LabeledText]:
    """The examples in ``config.sources``, in order.

    A source is a ``.tsv``, ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file with a column of texts and one of
    labels, or ``LABEL=FILE``, a file of which each line that is not blank is a text with that label. A table has a
    header if its first row holds the two names; without one it has two columns, the text first. Any file may be
    compressed (``.gz``, ``.zst``). Labels may be text, whole numbers, or true and false; 3 and 3.0 are the
    label that a table spells ``3``, and true is ``True``.

    Raises:
        ValueError: a file that is missing, of another kind, not UTF-8, or with a row that is no example; names the row.
    """
    if not config.sources:
        raise ValueError("give data.sources: files with texts and labels")
    target = TARGETS[config.problem]
    for source in config.sources:
        name, separator, file = source.partition("=")
        if separator and not Path(source).exists():
            value = target(name, config.separator, f"data.sources: {source}")
            if not Path(file).is_file():
                raise ValueError(f"{file} is not a file")
            for text in text_lines(read_content(Path(file))):
                yield LabeledText(text, value)
        elif file_kind(path := Path(source)) in WITH_ROWS:
            if not path.is_file():
                raise ValueError(f"{source} is not a file")
            for row in read_columns(path, (config.text, config.label), settings="data.text and data.label name"):
                text, label = row.values
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"{row.where} has no text")
                yield LabeledText(text, target(label, config.separator, row.where))
        elif not path.is_file():
            raise ValueError(f"{source} is not a file")
        else:
            raise ValueError(
                f"{path} is none of {', '.join(WITH_ROWS)}; a file of texts that share a label is given as LABEL=FILE"
            )


def label_name(value: Any, where: str) -> str:
    """A label as text.

    >>> [label_name(value, "row 1") for value in (" spam ", 3, 3.0, True)]
    ['spam', '3', '3', 'True']

    Raises:
        ValueError: nothing that names a class.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        fraction = "; data.problem regression learns numbers" if isinstance(value, float) else ""
        raise ValueError(f"{where} has no label, but {value!r}{fraction}")
    return str(value).strip()


def _label(value: Any, separator: str, where: str) -> str:
    return label_name(value, where)


def _labels(value: Any, separator: str, where: str) -> tuple[str, ...]:
    """Labels of a list, or of text with a separator between them; none is an answer, too."""
    if isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} has no list of labels, but {value!r}")
    return tuple(dict.fromkeys(label_name(each, where) for each in value))


def _number(value: Any, separator: str, where: str) -> float:
    """A finite number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} has no number to learn, but {value!r}: regression needs a finite one for every text")
    return number


TARGETS: dict[str, Callable[[Any, str, str], Target]] = {
    "single_label": _label,
    "multi_label": _labels,
    "regression": _number,
}
