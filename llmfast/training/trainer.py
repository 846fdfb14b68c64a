"""One optimizer step after another: the model, its optimizers and its place in the data, without any display."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfast.data.loader import Batches
from llmfast.data.shards import TokenShards
from llmfast.evaluation.perplexity import IGNORED, Evaluation, evaluate
from llmfast.models.decoder import Decoder
from llmfast.training.checkpoint import Checkpoint, load_model_tensors, model_tensors
from llmfast.training.config import RunConfig
from llmfast.training.hardware import can_compile, choose_device, choose_precision, peak_flops
from llmfast.training.optimizer import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from llmfast.training.schedule import learning_rate_factor


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. Tensors, so that reading them (a wait for the GPU) is the caller's choice."""

    loss: Tensor
    """Mean loss over the batch's targets, before the update, nats per token."""
    gradient_norm: Tensor
    """Before clipping."""
    learning_rate_factor: float


class Trainer:
    """The state of a run and the one operation on it, ``step``.

    Everything it does is decided by ``config`` and ``shards``: on one machine's CPU two trainers give bit-equal losses,
    and one restored from a checkpoint continues as if it had never stopped.
    """

    def __init__(self, config: RunConfig, shards: TokenShards):
        training = config.training
        self.config, self.shards = config, shards
        self.device = choose_device(training.device)
        self.precision = choose_precision(training.precision, self.device)
        self.compiled = training.compile and can_compile(self.device)
        if self.device.type == "cpu":
            torch.use_deterministic_algorithms(True)
        generator = torch.Generator().manual_seed(training.seed)
        self.model = Decoder(config.model, generator=generator).to(self.device)
        # The compiled module shares its parameters; checkpoints are made of the plain one, so that no name in them
        # carries the compiler's prefix.
        self._forward = torch.compile(self.model) if self.compiled else self.model
        self._begin()

    def _begin(self) -> None:
        self.steps_done = 0
        self.optimizers = build_optimizers(self.model, self.config.training)
        training = self.config.training
        self.batches = Batches(
            self.shards, self.config.model.context, training.batch_size, seed=training.seed
        )

    def step(self) -> StepResult:
        """One optimizer step on the next batch.

        A batch is worked through in ``accumulate`` parts; each part's loss counts by its share of the batch's
        targets, so that the gradient is that of the whole batch.
        """
        training = self.config.training
        factor = learning_rate_factor(training, self.steps_done)
        set_learning_rate(self.optimizers, factor)
        tokens, targets = (each.to(self.device, non_blocking=True) for each in next(self.batches))
        loss = torch.zeros((), device=self.device)
        counted = (targets != IGNORED).sum()
        for part, part_targets in zip(
            tokens.chunk(training.accumulate), targets.chunk(training.accumulate), strict=True
        ):
            share = (part_targets != IGNORED).sum() / counted
            with self.autocast():
                part_loss = self._forward(part, part_targets) * share
            part_loss.backward()
            loss += part_loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.steps_done += 1
        return StepResult(loss, norm, factor)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the run's precision; parameters and reductions stay float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def evaluate(self, shards: TokenShards, **options: int | None) -> Evaluation:
        """``llmfast.evaluation.perplexity.evaluate`` on this trainer's model, in its precision."""
        return evaluate(self.model, shards, autocast=self.autocast(), **options)

    def seconds_per_step(self, steps: int = 20) -> float:
        """Median time of a step, measured on steps that are then undone (the first, which compiles, not counted)."""
        before = {name: tensor.clone() for name, tensor in model_tensors(self.model).items()}
        self.step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step().loss.item()
            times.append(time.perf_counter() - start)
        load_model_tensors(self.model, before)
        self._begin()
        return sorted(times)[len(times) // 2]

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, named, for a checkpoint."""
        return optimizer_tensors(self.optimizers, self.model)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: parameters, optimizer state, place in the data and in the schedule."""
        load_model_tensors(self.model, checkpoint.model)
        load_optimizer_tensors(self.optimizers, self.model, checkpoint.optimizer)
        self.steps_done, self.batches.position = checkpoint.step, checkpoint.position

    @property
    def tokens_per_step(self) -> int:
        return self.config.training.batch_size * self.config.model.context

    def utilisation(self, tokens_per_second: float) -> float | None:
        """Share of the device's peak that the model's arithmetic takes; None where the peak is not known."""
        peak = peak_flops(self.device, self.precision)
        return tokens_per_second * self.config.model.flops_per_token() / peak if peak else None
