"""Launches of which all but the tensors is decided once.

What an op launches (kernel, grid, strides, numbers, constants) follows from layouts, options and the chip. A function
that is decorated with ``planned`` decides it from these alone, as arguments that can be hashed, and returns a
``Plan``: equal arguments give the same plan, so a key cannot leave out anything that a choice depends on. What a
compiled kernel depends on besides, dtypes and addresses of the tensors, is asked of each launch (``frame.direct``).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import launch as launches
from .direct import Prepared

MOST_PLANS = 4096  # of one function; those not used for longest are made again

_kept: list[Any] = []

P = ParamSpec("P")
T = TypeVar("T")


def planned(decide: Callable[P, T]) -> Callable[P, T]:
    """Keeps what ``decide`` returned for equal arguments of equal types.

    It may ask nothing but its arguments, launch rules and their tables. Whoever forces a choice, for a measurement or
    a test, calls ``forget_plans`` before and after.
    """
    kept = lru_cache(MOST_PLANS, typed=True)(decide)
    _kept.append(kept)
    return kept  # pyright: ignore[reportReturnType]


def forget_plans() -> None:
    """All plans are made again: launch choices are others now."""
    for kept in _kept:
        kept.cache_clear()


class Plan(Prepared):
    """``launch.run(kernel, grid, like, *tensors, *numbers, **options)`` for any tensors; these are the kernel's first
    parameters, None included."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], *numbers: Any, **options: Any):
        super().__init__(kernel, grid, numbers, launches.settled(options))
        self.is_empty = 0 in grid

    def run(self, like: Tensor, *tensors: Any) -> None:
        if self.is_empty:
            return
        if like.is_meta:
            launches.compile_only(self.kernel, self.grid, (*tensors, *self.numbers), {**self.options})
        elif launches.is_elsewhere(like):
            with torch.cuda.device(like.device):
                self.launch(tensors)
        else:
            self.launch(tensors)
