"""Best-fit-decreasing bin packing of document lengths, for any number of documents."""

from __future__ import annotations

import numpy as np


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
