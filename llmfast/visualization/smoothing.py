"""The line through noisy figures of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Exponential average over about 25 steps, with Adam's bias correction."""
    decay, total, smooth = 0.96, 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        smooth[index] = total / (1 - decay ** (index + 1))
    return smooth
