"""Best-fit-decreasing bin packing of document lengths, for any number of documents; and of padded rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item, so that no bin holds more than ``capacity``: longest first, each where least room is left.

    Items of one length are placed together and bins with equal room are kept in one list, so that the work in Python
    grows with the number of different lengths (at most ``capacity``), not with the number of items.

    Raises:
        ValueError: an item longer than ``capacity``, or one of no length.

    >>> best_fit(np.array([3, 6, 4, 5]), 9).tolist()
    [0, 0, 1, 1]
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths must be from 1 to {capacity}, got {lengths.min()} to {lengths.max()}")
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    bins = _Bins(capacity)
    placed = [bins.place(int(size), int(count)) for size, count in zip(sizes[::-1], counts[::-1], strict=True)]
    result = np.empty(len(lengths), np.int64)
    result[order] = np.concatenate([np.empty(0, np.int64), *placed])
    return result


class PackedRows(NamedTuple):
    """Fewer rows that hold what N padded rows of S tokens hold, side by side."""

    places: Tensor
    """(R, S) int64: where each token is among the N·S; any place for padding."""
    is_real: Tensor
    """(R, S) bool: false for padding, which ends a row."""
    cu_seqlens: Tensor
    """(2 N + 1,) int32: where the parts begin in the R·S tokens; padding is a part of its own, and entries repeat."""
    back: Tensor
    """(N, S) int64: where each token went among the R·S; any place for padding."""


def pack_rows(is_real: Tensor) -> PackedRows:
    """How padded rows, of which ``is_real`` (N, S) is true at the beginning, fit into fewer.

    >>> pack_rows(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()).places
    tensor([[4, 5, 6, 7],
            [0, 1, 8, 0]])

    Raises:
        ValueError: a row without a token.
    """
    N, S = is_real.shape
    lengths = is_real.sum(1).cpu().numpy()
    bins = best_fit(lengths, S)
    filled = np.zeros(bins.max() + 1, np.int64)
    places, back, begins = np.full((len(filled), S), -1), np.zeros((N, S), np.int64), []
    for row, (bin_, length) in enumerate(zip(bins.tolist(), lengths.tolist(), strict=True)):
        first = int(filled[bin_])
        places[bin_, first : first + length] = row * S + np.arange(length)
        back[row, :length] = bin_ * S + first + np.arange(length)
        begins.append(bin_ * S + first)
        filled[bin_] += length
    ends = np.arange(len(filled)) * S + filled
    total = len(filled) * S
    cu_seqlens = np.full(2 * N + 1, total, np.int32)
    edges = np.unique(np.concatenate([begins, ends]))
    cu_seqlens[: len(edges)] = edges
    tensors = places.clip(min=0), places >= 0, cu_seqlens, back
    return PackedRows(*(torch.from_numpy(each).to(is_real.device) for each in tensors))


class _Bins:
    """Bins by the room left in them."""

    def __init__(self, capacity: int):
        self.capacity, self.number = capacity, 0
        self.open: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]

    def place(self, size: int, count: int) -> np.ndarray:
        """Bins for ``count`` items of ``size``."""
        placed = []
        for room in range(size, self.capacity):
            if count == 0:
                break
            if self.open[room]:
                bins = np.concatenate(self.open[room])
                self.open[room] = []
                count -= self._fill(bins, room, size, count, placed)
        if count:
            fresh = np.arange(self.number, self.number - (-count // (self.capacity // size)))
            self.number += len(fresh)
            self._fill(fresh, self.capacity, size, count, placed)
        return np.concatenate(placed)

    def _fill(self, bins: np.ndarray, room: int, size: int, count: int, placed: list[np.ndarray]) -> int:
        """Put up to ``count`` items of ``size`` into bins with ``room``, each filled before the next; how many went."""
        each = room // size  # once one such item is in a bin, that bin is the best fit for the next
        full, rest = divmod(min(count, each * len(bins)), each)
        placed.append(np.repeat(bins[:full], each))
        self._keep(bins[:full], room - each * size)
        if rest:
            placed.append(np.repeat(bins[full : full + 1], rest))
            self._keep(bins[full : full + 1], room - rest * size)
        self._keep(bins[full + (rest > 0) :], room)
        return full * each + rest

    def _keep(self, bins: np.ndarray, room: int) -> None:
        if len(bins) and room:
            self.open[room].append(bins)
