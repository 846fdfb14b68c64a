"""A batch: named columns with one row per example, and where documents start in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORED = -100
"""A target that does not count, as in ``torch.nn.functional.cross_entropy``."""
ROUNDED = 16
"""Rows of examples are padded to a multiple of this: few lengths, so that little is compiled."""


class Batch:
    """Tensors by name, all with the same number of rows, to train or evaluate on.

    The columns are what a task and its objective agree on: ``tokens`` and ``targets`` for pretraining, ``tokens``,
    ``lengths`` and ``labels`` for classification, advantages or chosen and rejected answers elsewhere. Each is also an
    attribute. ``cu_seqlens`` (documents + 1,) int32 says where documents start in the B·S tokens laid end to end, the
    last entry being the end; it is None without document masks.

    >>> batch = Batch(tokens=torch.arange(6).view(3, 2), labels=torch.tensor([0, 1, 1]))
    >>> batch.labels
    tensor([0, 1, 1])
    >>> [part.rows for part in batch.split(2)]
    [2, 1]

    Raises:
        ValueError: no columns, or columns with different numbers of rows.
    """

    columns: dict[str, Tensor]
    cu_seqlens: Tensor | None

    def __init__(self, cu_seqlens: Tensor | None = None, **columns: Tensor):
        self.columns, self.cu_seqlens = columns, cu_seqlens
        rows = {name: len(column) for name, column in columns.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"the columns of a batch must have one number of rows, got {rows}")

    def __getattr__(self, name: str) -> Tensor:
        columns = self.__dict__.get("columns", {})
        if name not in columns:
            raise AttributeError(f"the batch has no column {name!r}; it has {', '.join(columns)}")
        return columns[name]

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, which a GPU copies from without waiting for the CPU."""
        return self._map(Tensor.pin_memory)

    def split(self, rows: int) -> list[Batch]:
        """Parts of at most ``rows`` rows each, in order."""
        return [self._part(first, min(first + rows, self.rows)) for first in range(0, self.rows, rows)]

    def _part(self, first: int, last: int) -> Batch:
        columns = {name: column[first:last] for name, column in self.columns.items()}
        if self.cu_seqlens is None:
            return Batch(**columns)
        S = self.tokens.shape[1]
        inside = (self.cu_seqlens >= first * S) & (self.cu_seqlens <= last * S)
        return Batch(self.cu_seqlens[inside] - first * S, **columns)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        cu_seqlens = None if self.cu_seqlens is None else function(self.cu_seqlens)
        return Batch(cu_seqlens, **{name: function(column) for name, column in self.columns.items()})


class Source(Protocol):
    """Where batches come from. Its position is saved in checkpoints.

    A source may be slow and may use the model that is being trained, as rollouts do. To resume exactly, it draws
    all randomness from (seed, position), and its state holds everything else that later batches depend on.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies what is read: a checkpoint resumes only with a source of the same fingerprint."""
        ...

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This process's rows of the next batch of ``batch_size`` rows in all processes together.

        ``context`` shortens rows in the warm-up of the context; a source without one refuses it.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """The place of the source: plain values, and tensors, by name.

        Every process is asked and must give the same: a source that holds something different in each process gathers
        it first, so that a run can resume with any number of processes.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from where ``state`` was taken."""
        ...
