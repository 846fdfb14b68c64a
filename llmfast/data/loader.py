"""Batches of training rows in an order fixed by the seed, from any position on, for any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmfast.data.batch import IGNORED, Batch
from llmfast.data.shards import Share
from llmfast.data.windows import Rows, Windows

__all__ = ["IGNORED", "Batch", "Loader"]

AT_ONCE = 2**16  # tokens; small batches are made several at once, so that calls of NumPy cost little
Wanted = tuple[int, int, int]  # position, batch size, context


class Loader:
    """This rank's part of one batch after another.

    The row at each position is a function of (seed, position) alone, and ``position``, the rows that all ranks together
    have read, is the whole state: a run resumed with it continues with exactly the next token, on any number of ranks.
    The next batches are made in a thread while the current one is used.

    Args:
        windows: where rows come from.
        seed: decides the order.
        position: rows already read.
        share: this rank and the number of ranks.
        document_masks: give ``cu_seqlens``, so that attention stays inside documents.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        seed: int,
        position: int = 0,
        share: Share = Share(),  # noqa: B008 (immutable)
        document_masks: bool = False,
    ):
        self.windows, self.seed, self.share = windows, seed, share
        self.position, self.document_masks = position, document_masks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ready: deque[tuple[Wanted, Batch]] = deque()
        self._ahead: tuple[Wanted, Future[list[Batch]]] | None = None

    @property
    def fingerprint(self) -> str:
        """The checksum of the token shards."""
        return self.windows.shards.checksum

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return self.windows.count

    def state(self) -> dict[str, int]:
        """The number of rows that all ranks together have read."""
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of ``state``."""
        self.position = state["position"]

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This rank's rows of the next batch of ``batch_size`` rows.

        With a ``context`` shorter than the windows', each window is cut into rows of that length: as many tokens in
        more rows, and the same place in the data.

        Raises:
            ValueError: ranks do not divide the batch, or ``context`` the windows.
        """
        context = context or self.windows.context
        if batch_size % self.share.count:
            raise ValueError(f"a batch of {batch_size} rows cannot be shared equally by {self.share.count} ranks")
        if self.windows.context % context:
            raise ValueError(f"a context of {context} does not divide the full one, {self.windows.context}")
        wanted = (self.position, batch_size, context)
        if not self._ready or self._ready[0][0] != wanted:
            self._refill(wanted)
        _, batch = self._ready.popleft()
        self.position += batch_size
        return batch

    def _refill(self, wanted: Wanted) -> None:
        """Take the batches from ``wanted`` on that were made ahead, or make them, and have the following made."""
        expected, future = self._ahead or (None, None)
        batches = future.result() if future and wanted == expected else self._make(*wanted)
        position, batch_size, context = wanted
        ends = range(position, position + len(batches) * batch_size, batch_size)
        self._ready = deque(((at, batch_size, context), batch) for at, batch in zip(ends, batches, strict=True))
        following = (position + len(batches) * batch_size, batch_size, context)
        self._ahead = following, self._thread.submit(self._make, *following)

    def _make(self, position: int, batch_size: int, context: int) -> list[Batch]:
        """This rank's rows of the batches from ``position`` on: one, or as many as make up AT_ONCE tokens."""
        mine = batch_size // self.share.count
        count = max(1, AT_ONCE // (mine * self.windows.context))
        firsts = position + np.arange(count) * batch_size + self.share.index * mine
        rows = self._read((firsts[:, None] + np.arange(mine)).ravel())
        columns = {name: each.reshape(count, -1, context) for name, each in rows.columns().items()}
        return [self._batch(**{name: each[place] for name, each in columns.items()}) for place in range(count)]

    def _read(self, positions: np.ndarray) -> Rows:
        epochs, places = np.divmod(positions, self.windows.count)
        if epochs[0] == epochs[-1]:
            return self.windows.read(places, self.seed, int(epochs[0]))
        parts = [self.windows.read(places[epochs == epoch], self.seed, int(epoch)) for epoch in np.unique(epochs)]
        names = parts[0].columns()
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def _batch(self, begins: np.ndarray, **columns: np.ndarray) -> Batch:
        cu_seqlens = _cu_seqlens(begins) if self.document_masks else None
        batch = Batch(cu_seqlens, **{name: torch.from_numpy(column) for name, column in columns.items()})
        return batch.pinned() if torch.cuda.is_available() else batch


def _cu_seqlens(begins: np.ndarray) -> Tensor:
    """Where documents start in rows in which they begin at ``begins`` and at the start of each row, and the end."""
    begins[:, 0] = True
    return torch.from_numpy(np.append(np.flatnonzero(begins), begins.size).astype(np.int32))
