"""The speed of a run and its smoothed loss."""

from __future__ import annotations

import math
import time

from llmfast.training.monitoring.display import Status
from llmfast.training.preflight.hardware import memory_in_use
from llmfast.training.session import Session
from llmfast.training.trainer import StepResult

SMOOTHING = 0.95


class Pace:
    """Smooths the loss and measures the speed of training itself, without evaluations, samples and saving."""

    def __init__(self, session: Session):
        self.trainer = session.trainer
        shards = session.prepared.train
        self.nats_to_bits_per_byte = len(shards) / shards.text_bytes / math.log(2)
        self.loss: float | None = None
        self.seconds, self.tokens, self.steps = 0.0, 0, 0
        self.started = time.perf_counter()

    def resume_clock(self) -> None:
        """What happened since the last status was not training."""
        self.started = time.perf_counter()

    def status(self, result: StepResult) -> Status:
        trainer, loss = self.trainer, float(result.loss)
        elapsed = time.perf_counter() - self.started
        # The first step of a process compiles: it says nothing of the speed to expect.
        if self.loss is not None:
            self.seconds, self.tokens, self.steps = (
                self.seconds + elapsed,
                self.tokens + result.tokens,
                self.steps + 1,
            )
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        steps_left = trainer.config.training.steps - trainer.steps_done
        speed = self.tokens / self.seconds if self.steps else None
        return Status(
            step=trainer.steps_done,
            loss=self.loss,
            bits_per_byte=self.loss * self.nats_to_bits_per_byte,
            gradient_norm=float(result.gradient_norm),
            tokens_per_second=speed,
            seconds_left=steps_left * self.seconds / self.steps if self.steps else None,
            memory=memory_in_use(trainer.device),
            utilisation=trainer.utilisation(speed) if speed else None,
        )
