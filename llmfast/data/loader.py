"""Batches of training rows in an order fixed by the seed, from any position on, for any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmfast.data.shards import Share
from llmfast.data.windows import IGNORED, Rows, Windows

__all__ = ["IGNORED", "Batch", "Loader"]

AT_ONCE = 2**16  # tokens; small batches are made several at once, so that calls of NumPy cost little
Wanted = tuple[int, int, int]  # position, batch size, context


@dataclass(frozen=True)
class Batch:
    """Rows to train on."""

    tokens: Tensor
    """(B, S) int64."""
    targets: Tensor
    """(B, S) int64: the token after each; IGNORED where there is none to predict."""
    cu_seqlens: Tensor | None = None
    """(documents + 1,) int32: where documents start in the B·S tokens, the last entry the end; None without masks."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU can copy from by itself."""
        return self._each(Tensor.pin_memory)

    def split(self, rows: int) -> list[Batch]:
        """Parts of at most ``rows`` rows each, in order."""
        S = self.tokens.shape[1]
        return [
            self._rows(first, min(first + rows, len(self.tokens)), S)
            for first in range(0, len(self.tokens), rows)
        ]

    def _rows(self, first: int, last: int, S: int) -> Batch:
        tokens, targets = self.tokens[first:last], self.targets[first:last]
        if self.cu_seqlens is None:
            return Batch(tokens, targets)
        inside = (self.cu_seqlens >= first * S) & (self.cu_seqlens <= last * S)
        return Batch(tokens, targets, self.cu_seqlens[inside] - first * S)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.tokens, self.targets, self.cu_seqlens)
        return Batch(*(tensor if tensor is None else function(tensor) for tensor in tensors))


class Loader:
    """This rank's part of one batch after another.

    The row at each position is a function of (seed, position) alone, and ``position``, the rows that all ranks together
    have read, is the whole state: a run resumed with it goes on with exactly the next token, with any number of ranks.
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

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This rank's rows of the next batch of ``batch_size`` rows.

        With a ``context`` shorter than the windows', each window is cut into rows of that length: as many tokens in
        more rows, and the same place in the data.

        Raises:
            ValueError: ranks do not divide the batch, or ``context`` the windows.
        """
        context = context or self.windows.context
        if batch_size % self.share.count:
            raise ValueError(
                f"a batch of {batch_size} rows cannot be shared equally by {self.share.count} ranks"
            )
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
        batches = future.result() if wanted == expected else self._make(*wanted)
        position, batch_size, context = wanted
        ends = range(position, position + len(batches) * batch_size, batch_size)
        self._ready = deque(
            ((at, batch_size, context), batch) for at, batch in zip(ends, batches, strict=True)
        )
        following = (position + len(batches) * batch_size, batch_size, context)
        self._ahead = following, self._thread.submit(self._make, *following)

    def _make(self, position: int, batch_size: int, context: int) -> list[Batch]:
        """This rank's rows of the batches from ``position`` on: one, or as many as make up AT_ONCE tokens."""
        mine = batch_size // self.share.count
        count = max(1, AT_ONCE // (mine * self.windows.context))
        firsts = position + np.arange(count) * batch_size + self.share.index * mine
        rows = self._read((firsts[:, None] + np.arange(mine)).ravel())
        parts = zip(
            *(each.reshape(count, -1, context) for each in (rows.tokens, rows.targets, rows.begins)),
            strict=True,
        )
        return [self._batch(*part) for part in parts]

    def _read(self, positions: np.ndarray) -> Rows:
        epochs, places = np.divmod(positions, self.windows.count)
        if epochs[0] == epochs[-1]:
            return self.windows.read(places, self.seed, int(epochs[0]))
        parts = [
            self.windows.read(places[epochs == epoch], self.seed, int(epoch)) for epoch in np.unique(epochs)
        ]
        return Rows(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("tokens", "targets", "begins")
            )
        )

    def _batch(self, tokens: np.ndarray, targets: np.ndarray, begins: np.ndarray) -> Batch:
        cu_seqlens = _cu_seqlens(begins) if self.document_masks else None
        batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), cu_seqlens)
        return batch.pinned() if torch.cuda.is_available() else batch


def _cu_seqlens(begins: np.ndarray) -> Tensor:
    """Where documents start in rows in which they begin at ``begins`` and at the start of each row, and the end."""
    begins[:, 0] = True
    return torch.from_numpy(np.append(np.flatnonzero(begins), begins.size).astype(np.int32))
