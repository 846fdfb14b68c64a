"""Batches of training rows in an order fixed by the seed, from any position on, for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmfast.data.shards import Share
from llmfast.data.windows import IGNORED, Windows

__all__ = ["IGNORED", "Batch", "Loader"]


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
    The next batch is made in a thread while the current one is used.

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
        self._ahead: tuple[tuple[int, int, int], Future[Batch]] | None = None

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
        expected, future = self._ahead or (None, None)
        batch = future.result() if wanted == expected else self._make(*wanted)
        self.position += batch_size
        following = (self.position, batch_size, context)
        self._ahead = following, self._thread.submit(self._make, *following)
        return batch

    def _make(self, position: int, batch_size: int, context: int) -> Batch:
        mine = batch_size // self.share.count
        epochs, places = np.divmod(position + self.share.index * mine + np.arange(mine), self.windows.count)
        parts = [
            self.windows.read(places[epochs == epoch], self.seed, int(epoch)) for epoch in np.unique(epochs)
        ]
        tokens, targets, begins = (
            np.concatenate([getattr(part, name) for part in parts]).reshape(-1, context)
            for name in ("tokens", "targets", "begins")
        )
        cu_seqlens = _cu_seqlens(begins) if self.document_masks else None
        batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), cu_seqlens)
        return batch.pinned() if torch.cuda.is_available() else batch


def _cu_seqlens(begins: np.ndarray) -> Tensor:
    """Where documents start in rows in which they begin at ``begins`` and at the start of each row, and the end."""
    begins[:, 0] = True
    return torch.from_numpy(np.append(np.flatnonzero(begins), begins.size).astype(np.int32))
