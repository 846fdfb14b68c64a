"""The speed of a run, and its smoothed loss and figures."""

from __future__ import annotations

import time

from llmfast.training.monitoring.display import Status
from llmfast.training.preflight.hardware import memory_in_use
from llmfast.training.trainer import StepResult, Trainer

SMOOTHING = 0.95


class Pace:
    """Smooths what is shown and measures the speed of training itself, without evaluations, samples and saving."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.smoothed: dict[str, float] = {}
        self.seconds, self.tokens, self.steps = 0.0, 0, 0
        self.started = time.perf_counter()

    def resume_clock(self) -> None:
        """Leave out what happened since the last status: it was not training."""
        self.started = time.perf_counter()

    def status(self, result: StepResult) -> Status:
        """The status after a step."""
        trainer = self.trainer
        elapsed = time.perf_counter() - self.started
        # The first step of a process compiles: it says nothing about the speed to expect.
        if self.smoothed:
            self.seconds += elapsed
            self.tokens += result.tokens
            self.steps += 1
        for name, figure in {"loss": float(result.loss), **result.figures}.items():
            self.smoothed[name] = SMOOTHING * self.smoothed.get(name, figure) + (1 - SMOOTHING) * figure
        loss = self.smoothed["loss"]
        steps_left = trainer.training.steps - trainer.steps_done
        speed = self.tokens / self.seconds if self.steps else None
        return Status(
            step=trainer.steps_done,
            loss=loss,
            units=trainer.task.units(loss),
            figures={name: self.smoothed[name] for name in result.figures},
            gradient_norm=float(result.gradient_norm),
            tokens_per_second=speed,
            seconds_left=steps_left * self.seconds / self.steps if self.steps else None,
            memory=memory_in_use(trainer.device),
            utilization=trainer.utilization(speed) if speed else None,
        )
