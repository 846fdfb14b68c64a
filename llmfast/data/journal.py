"""What a preparation has completed so far, so that a killed one can be resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmfast.data.shards import Shard
from llmfast.files import atomic_write

JOURNAL = "journal.json"


class Journal:
    """Documents read, where to read on, the shards that hold them by split, and whether that is all.

    Raises:
        ValueError: the journal in the folder is damaged, or of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.documents, self.complete = 0, False
        self.place: dict[str, Any] | None = None
        self.shards: dict[str, list[Shard]] = {}
        if path.exists():
            self._read()

    def save(
        self,
        documents: int,
        shards: dict[str, list[Shard]],
        *,
        place: dict[str, Any] | None = None,
        complete: bool = False,
    ) -> None:
        """Record that the first ``documents`` of the corpus are in ``shards`` (atomic).

        ``place`` is one of the corpus that is at or before the next document, to begin reading there.
        """
        record = {
            "settings": self.settings,
            "documents": documents,
            "place": place,
            "complete": complete,
            "shards": {split: [asdict(shard) for shard in each] for split, each in shards.items()},
        }
        atomic_write(self.path, json.dumps(record, indent=1) + "\n")

    def _read(self) -> None:
        try:
            record = json.loads(self.path.read_text())
            self.documents, self.complete = record["documents"], record["complete"]
            self.place = record.get("place")
            self.shards = {split: [Shard(**each) for each in shards] for split, shards in record["shards"].items()}
            before = record["settings"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None
        # Journals of earlier versions have fewer settings.
        differing = [name for name, value in self.settings.items() if name in before and before[name] != value]
        if differing:
            raise ValueError(f"{self.path.parent} was prepared with another {differing[0]}; choose another folder")
