"""Records with named columns, from JSON, JSON Lines and Parquet files and datasets, and the conversations in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmfast.data.chat.conversation import Conversation, FormName, conversation, recognize
from llmfast.data.examples.gym import gym_records, is_gym
from llmfast.data.reading.corpus import files_of
from llmfast.data.reading.datasets_hub import is_dataset, load_rows
from llmfast.data.reading.readers import (
    JSON,
    JSON_LINES,
    PARQUET,
    file_kind,
    json_records,
    parquet_records,
    without_nulls,
)

Located = tuple[str, dict[str, Any]]
KINDS = (*JSON, *JSON_LINES, *PARQUET)


def read_conversations(
    sources: Sequence[Any], *, form: FormName | None = None, report: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, Conversation]]:
    """(where, conversation) of every record in ``sources``, in order.

    Args:
        sources: ``.json``, ``.jsonl`` or ``.parquet`` files (also ``.gz`` and ``.zst``), folders and glob patterns of
            them, ``hf:NAME[:SPLIT]``, or ``gym:NAME[:COUNT]`` (tasks of reasoning-gym); from Python also a
            ``datasets.Dataset`` or any iterable of dictionaries.
        form: the form of all records; recognized by the columns of the first record of each source if None.
        report: is called with the form that was recognized.

    Raises:
        ValueError: no sources, a file that cannot be read, or a record that is not of the form; names both.
    """
    for name, records in opened_sources(sources):
        chosen = form
        for where, record in records:
            if chosen is None:
                chosen = recognize(record, where)
                report(f"form        {chosen}, recognized by the columns {', '.join(record)} of {name}")
            yield where, conversation(record, chosen, where)


def opened_sources(sources: Sequence[Any]) -> Iterator[tuple[str, Iterable[Located]]]:
    """Each file or dataset with its (where, record) pairs.

    Raises:
        ValueError: no sources, or a file that cannot be read.
    """
    if not sources:
        raise ValueError("give data.sources: files with records")
    for source in sources:
        if isinstance(source, str) and is_gym(source):
            yield source, gym_records(source)
        elif isinstance(source, str) and is_dataset(source):
            yield source, _rows(source, load_rows(source)[0])
        elif isinstance(source, str | Path):
            for path in files_of(str(source)):
                yield str(path), file_records(path)
        else:
            yield type(source).__name__, _rows(type(source).__name__, source)


def file_records(path: Path) -> Iterator[Located]:
    """(where, record) of each record in a file.

    Raises:
        ValueError: another kind of file, a damaged one, or a record that is not a table of columns.
    """
    kind = file_kind(path)
    if kind in PARQUET:
        return parquet_records(path)
    if kind in JSON + JSON_LINES:
        return json_records(path)
    raise ValueError(f"{path} is not one of {', '.join(KINDS)}")


def _rows(name: str, rows: Iterable[Any]) -> Iterator[Located]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}[{number}] is not a table of columns")
        yield f"{name}[{number}]", without_nulls(row)
