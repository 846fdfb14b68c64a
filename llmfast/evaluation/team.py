"""Evaluation divided between processes, with the result of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from llmfast.data.shards import Share

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Processes that evaluate together; one alone does all of it."""

    share: Share = Share()  # noqa: RUF009 (frozen)
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Adds what the processes give, of each share once."""

    def figures(self, measure: Callable[[T], Sequence[float]], items: Sequence[T], width: int) -> list[list[float]]:
        """The ``width`` numbers that ``measure`` gives of every item, each measured by one process.

        In the order of ``items`` and the same in every process, so that what is added up is what one process adds up.
        All measure equally often, which a model needs that FSDP2 divides: at the end, some repeat an item for nothing.
        """
        table = torch.zeros(len(items), width, dtype=torch.float64)
        for first in range(0, len(items), self.share.count):
            place = first + self.share.index
            measured = measure(items[min(place, len(items) - 1)])
            if place < len(items):
                table[place] = torch.tensor(measured, dtype=torch.float64)
        return self.sum(table).tolist()


ALONE = Team()
