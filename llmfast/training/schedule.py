"""Schedules: functions of the step alone, so that nothing has to be saved to resume."""

from __future__ import annotations

import math

from llmfast.training.config import TrainingConfig

# The sizes in a warm-up of the batch or the context. There are few of them, so that little is recompiled.
DIVISORS = (8, 4, 2)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0): a linear warm-up, then ``config.schedule``.

    Sources: cosine, Loshchilov & Hutter 2017, "SGDR", without restarts; wsd, Hu et al. 2024, "MiniCPM", section 4, with
    the 1 − sqrt decay of Hägele et al. 2024 (arXiv:2405.18392).
    """
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        start = max(warmup, config.steps - round(config.decay * config.steps))
        shape = 1 - math.sqrt(max(0, step - start) / max(1, config.steps - start))
    else:
        progress = (step - warmup) / max(1, config.steps - warmup)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    floor = config.final_learning_rate
    return floor + (1 - floor) * shape


def batch_size_at(config: TrainingConfig, step: int) -> int:
    """Rows (of full context) of the batch at ``step``."""
    return config.batch_size // _divisor(config.batch_warmup, config.steps, step)


def context_at(config: TrainingConfig, context: int, step: int) -> int:
    """Length of rows at ``step``, where ``context`` is the full one."""
    return context // _divisor(config.context_warmup, config.steps, step)


def _divisor(share: float, steps: int, step: int) -> int:
    stretch = share * steps / len(DIVISORS)
    return DIVISORS[int(step / stretch)] if step < share * steps else 1
