"""What keeps one bad step from ruining a run: loss scaling for float16, and detection of NaN and spikes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from torch import Tensor

WINDOW = 100  # a new loss is compared with the median of so many accepted ones
ENOUGH = 20  # with fewer of them, no spike is detected


class BadStepError(ValueError):
    """A bad step ended the run, as ``training.on_bad_step`` asks."""


class LossScaler:
    """Loss scaling for float16 (Micikevicius et al. 2018, section 3.2), by the rule of ``torch.amp.GradScaler``.

    The caller says whether the gradient was finite after looking at its norm over all ranks, so that all of them skip
    the same steps and keep the same scale.
    """

    GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.scale = 2.0**16 if enabled else 1.0
        self.good_steps = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        return loss * self.scale if self.enabled else loss

    def update(self, *, finite: bool) -> None:
        """Halve the scale after a gradient that overflowed; double it after 2,000 that did not."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale *= self.BACKOFF
        elif self.good_steps == self.INTERVAL:
            self.scale, self.good_steps = self.scale * self.GROWTH, 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, Any]) -> None:
        if self.enabled:
            self.scale, self.good_steps = state["scale"], state["good_steps"]


class Guard:
    """Detects bad steps: a loss or gradient that is not finite, or a loss far above the recent ones.

    Args:
        spike: how many times the usual loss is a spike; 0 for no detection.
        is_spike: the objective's judgment, called with (loss, usual loss, ``spike``).
    """

    def __init__(self, spike: float, is_spike: Callable[[float, float, float], bool]):
        self.spike, self.is_spike = spike, is_spike
        self.losses: list[float] = []

    def fault(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step, in words; None if nothing is, and then its loss is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if self.spike and len(self.losses) >= ENOUGH:
            usual = statistics.median(self.losses)
            if self.is_spike(loss, usual, self.spike):
                return f"the loss {loss:.3f} is over {self.spike:g} times the median of the last steps, {usual:.3f}"
        self.losses = [*self.losses, loss][-WINDOW:]
        return None

    def state(self) -> list[float]:
        return self.losses

    def restore(self, state: list[float]) -> None:
        self.losses = list(state)
