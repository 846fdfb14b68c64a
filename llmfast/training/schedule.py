"""Learning-rate schedules: functions of the step, so that nothing has to be saved to resume."""

from __future__ import annotations

import math

from llmfast.training.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0): linear warm-up, then a cosine to the final rate.

    Source: Loshchilov & Hutter, "SGDR" (2017), without restarts.
    """
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    floor = config.final_learning_rate
    return floor + (1 - floor) * cosine
