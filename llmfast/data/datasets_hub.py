"""Hugging Face datasets: by name, streamed, or the library's own objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmfast.data.readers import text_column
from llmfast.data.shards import Share


@dataclass(frozen=True)
class Hub:
    """Where a dataset is and how it is read."""

    path: str
    config: str | None = None
    files: str | None = None
    revision: str | None = None


NAMED = {
    "fineweb-edu": Hub("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "fineweb": Hub("HuggingFaceFW/fineweb", "sample-10BT"),
    "tinystories": Hub("roneneldan/TinyStories"),
    # These two were published as loading scripts, which the library no longer runs: read what they led to.
    "openwebtext": Hub("Skylion007/openwebtext", revision="refs/convert/parquet"),
    "tinyshakespeare": Hub(
        "text",
        files="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
}
"""Datasets by short name. The FineWeb ones are their samples of 10 billion tokens."""


def is_dataset(source: str) -> bool:
    """Whether a source is a dataset and not a path."""
    return source.startswith("hf:") or source in NAMED


def texts(source: Any, column: str | None, share: Share) -> Iterator[str]:
    """The texts of this share of a dataset: a name, an object of the datasets library, or any iterable of str or dict.

    Raises:
        ValueError: it cannot be loaded, or has no column of text (the message says which it has).
    """
    name = source if isinstance(source, str) else type(source).__name__
    if isinstance(source, str):
        source, wished = _load(source)
        column = wished or column
    chosen: str | None = None
    for row in _share(source, share):
        if isinstance(row, str):
            yield row
            continue
        chosen = chosen or text_column(row, column, name)
        if row[chosen] is not None:
            yield row[chosen]


def _share(rows: Iterable, share: Share) -> Iterable:
    if share.count == 1:
        return rows
    if hasattr(rows, "shard") and getattr(rows, "num_shards", share.count) >= share.count:
        return rows.shard(num_shards=share.count, index=share.index)
    return (row for number, row in enumerate(rows) if share.has(number))


def _load(source: str) -> tuple[Iterable, str | None]:
    """The rows of ``hf:NAME[:SPLIT[:COLUMN]]`` or a short name, streamed, and the column asked for."""
    import datasets

    if source in NAMED:
        hub, split, column = NAMED[source], "train", None
    else:
        name, split, column = (*source.removeprefix("hf:").split(":"), "", "")[:3]
        hub = Hub(name)
    options = {"data_files": hub.files, "revision": hub.revision}
    if hub.path == "text":  # one row a line by default
        options["sample_by"] = "document"
    try:
        rows = datasets.load_dataset(
            hub.path,
            hub.config,
            split=split or "train",
            streaming=True,
            **{key: value for key, value in options.items() if value},
        )
    except Exception as error:  # the library raises its own, requests' and huggingface_hub's errors
        raise ValueError(f"dataset {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    return rows, column or None
