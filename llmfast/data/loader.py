"""Batches of training windows in an order fixed by the seed, from any position on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from llmfast.data.shards import TokenShards


class Batches:
    """Windows of ``context`` tokens with their next tokens as targets, shuffled anew each epoch.

    The order is a function of (seed, epoch) alone and the position is the number of windows already given, so that a
    resumed run continues with exactly the next batch. Each epoch shifts the window grid by a random offset: a token
    is not always seen at the same place of a window.

    Raises:
        ValueError: fewer tokens than one window needs.
    """

    def __init__(self, shards: TokenShards, context: int, batch_size: int, *, seed: int, position: int = 0):
        self.shards, self.context, self.batch_size = shards, context, batch_size
        self.seed, self.position = seed, position
        # One token beyond the window is the last target; the random shift takes up to one window more.
        self.windows = (len(shards) - 1) // context - 1
        if self.windows < 1:
            raise ValueError(
                f"{shards.folder} holds {len(shards)} tokens; training with a context of {context} "
                f"needs at least {2 * context + 1}"
            )
        self._epoch, self._order, self._shift = -1, np.empty(0, np.int64), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The next (tokens, targets), int64, both (batch_size, context)."""
        rows = np.stack([self._window(self.position + row) for row in range(self.batch_size)])
        self.position += self.batch_size
        window = torch.from_numpy(rows.astype(np.int64))
        return window[:, :-1], window[:, 1:]

    def _window(self, position: int) -> np.ndarray:
        epoch, place = divmod(position, self.windows)
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._order, self._shift = random.permutation(self.windows), int(random.integers(self.context))
            self._epoch = epoch
        start = int(self._order[place]) * self.context + self._shift
        return self.shards.read(start, self.context + 1)
