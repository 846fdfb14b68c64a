"""A run folder: what is in it, and the log of a run.

RUN/config.yaml          the exact configuration
RUN/config.first.yaml    that which the run began with, where it was changed when the run was resumed
RUN/data/                tokenizer and token shards
RUN/checkpoints/step-*/  the last two checkpoints
RUN/log.jsonl            one JSON object a line: training and validation losses by step
RUN/loss.png             the loss curve
RUN/.lock                which process trains in it
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import math
import os
import platform
from pathlib import Path
from typing import Any, TextIO, TypeVar

from llmfast import config as config_files
from llmfast.files import atomic_write

Config = TypeVar("Config")
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunFolder:
    """Paths and files of one run folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.data = self.folder / "data"
        self.config_file = self.folder / "config.yaml"
        self.first_config_file = self.folder / "config.first.yaml"
        self.log_file = self.folder / "log.jsonl"
        self.loss_plot = self.folder / "loss.png"
        self.lock_file = self.folder / ".lock"
        self._lock: TextIO | None = None

    def save_config(self, config: Any) -> None:
        """Write the configuration of the run, a dataclass."""
        config_files.save(config, self.config_file)

    def change_config(self, config: Any) -> None:
        """Write the configuration of a resumed run, and keep that which the run began with."""
        if not self.first_config_file.exists():
            atomic_write(self.first_config_file, self.config_file.read_text(encoding="utf-8"))
        self.save_config(config)

    def load_first_config(self, config_class: type[Config]) -> Config:
        """The configuration that the run began with.

        Raises:
            ValueError: it is damaged, or that of another task.
        """
        is_changed = self.first_config_file.exists()
        return config_files.load(config_class, self.first_config_file if is_changed else self.config_file)

    def load_config(self, config_class: type[Config]) -> Config:
        """The configuration of the run.

        Raises:
            ValueError: it is damaged, or that of another task.
        """
        if not self.config_file.read_text(encoding="utf-8").strip():
            raise ValueError(f"{self.config_file} is empty")
        return config_files.load(config_class, self.config_file)

    def lock(self) -> None:
        """Keep other processes from training in this folder, until ``unlock`` or the end of this process.

        A file system that has no locks keeps nobody away.

        Raises:
            ValueError: another process does; names it.
        """
        file = open(self.lock_file, "a+", encoding="utf-8")  # noqa: SIM115 (closed by unlock)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                file.close()
                return
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{self.folder} is being trained by {holder}: two processes may not write one run"
            ) from None
        now = datetime.datetime.now().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {now}\n")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let others train here; nothing happens if it was not locked."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def log(self, **record: Any) -> None:
        """Append one record. A figure that is no finite number is null: JSON has no NaN and no infinity."""
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The log so far; a line that a killed process left unfinished, or that is damaged, is passed over."""
        if not self.log_file.exists():
            return []
        records = []
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
        return records

    def rewind_log(self, step: int) -> None:
        """Drop the records after ``step``: a run resumed there writes them again."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        atomic_write(self.log_file, "".join(kept))
