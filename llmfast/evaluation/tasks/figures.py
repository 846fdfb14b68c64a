"""Means over questions with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A mean over questions with its standard error, which is None for one question."""

    value: float
    stderr: float | None


def mean(values: Sequence[float]) -> Figure:
    """The mean and the sample standard deviation over the root of the count.

    >>> mean([1.0, 0.0, 1.0, 0.0]).value
    0.5
    """
    array = np.asarray(values, np.float64)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Figure(float(array.mean()), stderr)
