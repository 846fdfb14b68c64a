"""Hugging Face datasets: by name, streamed, or the library's own objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmfast.data.reading.readers import text_column
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


class Texts:
    """The texts of this share of a dataset: a name, an object of the datasets library, or any iterable of str or dict.

    Args:
        source: as above.
        column: the field that holds the text.
        share: read only this part.
        place: continue from an earlier result of ``place``.

    Raises:
        ValueError: it cannot be loaded, or (when iterated) has no column of text (the message says which it has).
    """

    def __init__(self, source: Any, column: str | None, share: Share, place: dict[str, Any] | None = None):
        self.name, self.column = source if isinstance(source, str) else type(source).__name__, column
        # A dataset that a caller made may shuffle, and then its state leaves out the rows that it holds back.
        self._is_ours = isinstance(source, str)
        if self._is_ours:
            source, wished = load_rows(source)
            self.column = wished or column
        self._rows, self._share = _divided(source, share)
        self.rows = self.count = 0
        if place is not None:
            self.rows, self.count = place["rows"], place["texts"]
            self._rows.load_state_dict(place["state"])

    def __iter__(self) -> Iterator[str]:
        chosen: str | None = None
        for number, row in enumerate(self._rows, self.rows):
            self.rows = number + 1
            if not self._share.has(number):
                continue
            if not isinstance(row, str):
                chosen = chosen or text_column(row, self.column, self.name)
                row = row[chosen]
            if row is not None:
                self.count += 1
                yield row

    def place(self) -> dict[str, Any] | None:
        """The place after the newest text, as JSON holds it; None where reading cannot continue from there."""
        if not self._is_ours or not hasattr(self._rows, "state_dict"):
            return None
        return {"rows": self.rows, "texts": self.count, "state": self._rows.state_dict()}


def _divided(rows: Any, share: Share) -> tuple[Any, Share]:
    """Rows to read, and the share of them to take: of a dataset in files enough, some are not read at all."""
    if share.count > 1 and hasattr(rows, "shard") and getattr(rows, "num_shards", share.count) >= share.count:
        return rows.shard(num_shards=share.count, index=share.index), Share()
    return rows, share


def load_rows(source: str) -> tuple[Any, str | None]:
    """The rows of ``hf:NAME[:SPLIT[:COLUMN]]`` or a short name, streamed, and the column asked for.

    Raises:
        ValueError: it cannot be loaded.
    """
    if source in NAMED:
        return load_split(NAMED[source], "train", source=source), None
    name, split, column = (*source.removeprefix("hf:").split(":"), "", "")[:3]
    return load_split(Hub(name), split or "train", source=source), column or None


def load_split(hub: Hub, split: str, *, source: str) -> Any:
    """The rows of one split, streamed; ``source`` is what errors call it.

    Raises:
        ValueError: it cannot be loaded.
        ModuleNotFoundError: a library that this needs is not installed.
    """
    import datasets

    if hub.files is not None:  # what fsspec reads the web with; it says so in words of its own
        import aiohttp  # noqa: F401

    options: dict[str, Any] = {"data_files": hub.files, "revision": hub.revision}
    if hub.path == "text":  # one row a line by default
        options["sample_by"] = "document"
    try:
        return datasets.load_dataset(
            hub.path,
            hub.config,
            split=split,
            streaming=True,
            **{key: value for key, value in options.items() if value},
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the library raises its own, requests' and huggingface_hub's errors
        raise ValueError(f"dataset {source} cannot be loaded: {str(error).splitlines()[0]}") from error
