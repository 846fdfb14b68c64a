"""A run folder: what is in it, and the log of a run.

RUN/config.yaml          the exact configuration
RUN/data/                tokenizer and token shards
RUN/checkpoints/step-*/  the last two checkpoints
RUN/log.jsonl            one JSON object a line: training and validation losses by step
RUN/loss.png             the loss curve
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from llmfast import config as config_files
from llmfast.files import atomic_write

Config = TypeVar("Config")


class RunFolder:
    """Paths and files of one run folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.data = self.folder / "data"
        self.config_file = self.folder / "config.yaml"
        self.log_file = self.folder / "log.jsonl"
        self.loss_plot = self.folder / "loss.png"

    def save_config(self, config: Any) -> None:
        """Write the configuration of the run, a dataclass."""
        config_files.save(config, self.config_file)

    def load_config(self, config_class: type[Config]) -> Config:
        """The configuration of the run.

        Raises:
            ValueError: it is damaged, or that of another task.
        """
        return config_files.load(config_class, self.config_file)

    def log(self, **record: Any) -> None:
        """Append one record."""
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The log so far; a line that a killed process left unfinished is passed over."""
        if not self.log_file.exists():
            return []
        records = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def rewind_log(self, step: int) -> None:
        """Drop the records after ``step``: a run resumed there writes them again."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        atomic_write(self.log_file, "".join(kept))
