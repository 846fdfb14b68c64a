"""One optimizer step after another, for any task: the model, its optimizers and its place in the data."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from llmfast.data.batch import Batch
from llmfast.data.order import random_integer
from llmfast.evaluation.team import Team
from llmfast.models.adapters.count import count_parameters
from llmfast.models.base import Base, check_base
from llmfast.models.size import experts_share
from llmfast.models.tensors import load_trained_tensors, trained_tensors
from llmfast.training.checkpoints.base import base_of
from llmfast.training.checkpoints.checkpoint import Checkpoint
from llmfast.training.config import ParallelConfig, TrainingConfig
from llmfast.training.distribution.placement import Placement
from llmfast.training.distribution.world import World
from llmfast.training.monitoring.guard import Guard, LossScaler
from llmfast.training.objective import Figures, Loss, decoders, sum_over_processes
from llmfast.training.optimizers.build import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from llmfast.training.preflight.hardware import can_compile, choose_device, choose_precision, peak_flops
from llmfast.training.preflight.limits import check_batch_size, check_context, check_memory
from llmfast.training.preflight.process import prepare_process
from llmfast.training.schedule import batch_size_at, context_at, learning_rate_factor
from llmfast.training.task import Task


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    loss: Tensor
    """Mean loss over the whole batch, before the update."""
    gradient_norm: Tensor
    """Before clipping."""
    learning_rate_factor: float
    learning_rates: dict[str, float]
    """Of each kind of optimizer, by the name of its setting."""
    tokens: int
    """Tokens in the batch, all processes together."""
    figures: dict[str, float] = field(default_factory=dict)
    """What the objective reported besides its loss."""
    scaling: dict[str, float] = field(default_factory=dict)
    """The factor on the loss (float16 only), and whether the gradient overflowed with it, so that no weight changed."""
    fault: str | None = None
    """Why the step was not taken; None if it was."""
    batch: Batch | None = None
    """This process's rows, where there was a fault."""


class Trainer:
    """The state of a run and the one operation on it, ``step``.

    Everything it does is decided by the task and the settings: on one machine's CPU two trainers give bit-equal losses,
    and one restored from a checkpoint continues as if it had never stopped.

    Args:
        task: the model with its objective, and the source of batches.
        training: how long, how fast, in what precision.
        parallel: how the processes divide the work.
        world: the processes.

    Raises:
        ValueError: settings that cannot be had with this data or this number of processes, or nothing to train.
    """

    def __init__(
        self,
        task: Task,
        training: TrainingConfig,
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008 (not written to)
        world: World = World(),  # noqa: B008
    ):
        self.task, self.training, self.world = task, training, world
        self.device = choose_device(training.device)
        self.precision = choose_precision(training.precision, self.device)
        self.compiled = training.compile and can_compile(self.device)
        check_memory(task.memory(), parallel, world, self.device, experts=experts_share(task.config.model))
        if self.device.type == "cpu":
            prepare_process()
        objective = task.objective()
        if not any(parameter.requires_grad for parameter in objective.model.parameters()):
            raise ValueError("there is nothing to train: every parameter of the model is frozen")
        # Counted before processes divide the model.
        self.parameters = count_parameters(objective.model)
        self.base: Base | None = base_of(objective.model, task.base(), world)
        self.placement = Placement(
            objective,
            parallel,
            world,
            device=self.device,
            precision=self.precision,
            compile=self.compiled,
        )
        self.objective = objective
        self.model: nn.Module = objective.model
        for decoder in decoders(self.model):
            decoder.activation_checkpointing = training.activation_checkpointing
        check_batch_size(training, self.placement.data_share.count)
        check_context(training, task.context)
        self._begin()

    def _begin(self) -> None:
        self.steps_done = 0
        self.optimizers = build_optimizers(self.model, self.training, self.placement.shardings)
        self.scaler = LossScaler(self.precision == torch.float16)
        self.guard = Guard(self.training.spike, self.objective.is_spike)
        self.source = self.task.source(self.placement.data_share, self)

    def step(self) -> StepResult:
        """One optimizer step on the next batch.

        A batch is worked through in ``accumulate`` parts; each part's loss counts by its share of what the objective
        counts over all processes, so that the gradient is that of the whole batch. A step whose loss or gradient is bad
        changes nothing but the place in the data.
        """
        training, share = self.training, self.placement.data_share
        factor = learning_rate_factor(training, self.steps_done)
        set_learning_rate(self.optimizers, factor)
        # Seeded by the step: dropout has no state to save, and a resumed run draws what an uninterrupted one would.
        torch.manual_seed(random_integer((training.seed, self.steps_done, share.index)) >> 1)
        context = context_at(training, self.task.context, self.steps_done)
        with record_function("data"):
            batch = self.source.next(batch_size_at(training, self.steps_done), context).to(self.device)
        loss, figures = self._backward(batch, context)
        scale = self.scaler.scale
        norm = self.placement.gradient_norm() / scale
        with record_function("step"):
            fault, applied = self._update(float(loss), norm)
        figures |= self.objective.after_step(applied)
        self.steps_done += 1
        return StepResult(
            loss,
            norm,
            factor,
            self._learning_rates(factor),
            self.objective.tokens(batch) * share.count,
            figures,
            {"loss_scale": scale, "overflow": float(not applied and fault is None)} if self.scaler.enabled else {},
            fault,
            batch if fault else None,
        )

    def _learning_rates(self, factor: float) -> dict[str, float]:
        names = ["learning_rate", *(["matrix_learning_rate"] if self.training.optimizer == "muon" else [])]
        return {name: getattr(self.training, name) * factor for name in names}

    def _backward(self, batch: Batch, context: int) -> tuple[Tensor, dict[str, float]]:
        """Gradients of the mean loss over what all processes count; returns that loss, and the figures."""
        # Processes that divide a model (tensor parallel) count the same items: the sums of losses and of weights are
        # inflated by the same factor.
        size = self.world.size
        counted = self.world.sum(self.objective.weight(batch))
        counted = torch.where(counted > 0, counted, 1)  # a batch of which nothing counts has a loss of 0
        rows = self.training.batch_size // self.training.accumulate // self.placement.data_share.count
        parts = batch.split(rows * self.task.context // context)
        total = torch.zeros((), device=self.device)
        figures = Figures()
        self._count_choices(parts)
        for part in parts:
            share = self.objective.weight(part) / counted
            with self.placement.part(last=part is parts[-1]), self.objective.computing():
                with self.autocast(), record_function("forward"):
                    loss = self.forward(part)
                mean = sum(loss.added.values(), loss.mean * share)
                # DDP and FSDP average gradients over processes, hence times their number.
                with record_function("backward"):
                    self.scaler.scaled(mean * size if size > 1 else mean).backward()
            total += loss.mean.detach() * share
            figures.add(loss.figures, share)
            figures.add_summands(loss.added)
        return self.world.sum(total), figures.over(self.world)

    def _count_choices(self, parts: list[Batch]) -> None:
        """Let mixtures of experts know the choices in the whole batch, over which they are balanced, where a call sees
        a part of it only. It takes a forward pass more: which experts are chosen is known when all layers have run."""
        balanced = [d for d in decoders(self.model) if len(d.expert_counts) and d.config.experts.auxiliary_weight]
        divided = len(parts) > 1 or self.placement.data_share.count > 1
        for decoder in balanced:
            decoder.is_part_of_batch = False
        if not (balanced and divided):
            return
        devices = [self.device] if self.device.type == "cuda" else []
        # Dropout decides what the routers see: the parts draw the same again.
        with torch.random.fork_rng(devices), torch.no_grad(), self.objective.computing(), self.autocast():
            for part in parts:
                self.forward(part)
        for decoder in balanced:
            decoder.batch_choices.copy_(decoder.expert_counts)
            sum_over_processes(decoder.batch_choices)
            decoder.expert_counts.zero_()
            decoder.is_part_of_batch = True

    def _update(self, loss: float, norm: Tensor) -> tuple[str | None, bool]:
        """Change the weights by the gradient: why the step is bad, if it is, and whether weights changed."""
        overflow = self.scaler.enabled and math.isfinite(loss) and not torch.isfinite(norm)
        scale = self.scaler.scale  # that of this step's gradient: the update may change it
        self.scaler.update(finite=not overflow)
        if overflow and self.scaler.scale >= 1:
            fault = None  # harmless: the scale is halved, and the next step is tried with that
        else:
            fault = self.guard.fault(loss, float(norm))
        applied = not overflow and fault is None
        if applied:
            clip = min(1.0, self.training.clip_norm / (float(norm) + 1e-6))
            self.placement.scale_gradients(clip / scale)
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return fault, applied

    def forward(self, batch: Batch) -> Loss:
        """The objective on a batch, by all processes."""
        return self.placement.forward(batch)

    # --- the policy: the model as evaluations, samples and rollouts use it ----------------------------------------

    @property
    def team(self) -> Team:
        """The processes, to divide an evaluation between them."""
        return self.placement.team

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the run's precision; parameters and reductions stay float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    @contextlib.contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """The model without dropout and without gradients."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train()

    def evaluate(self, *, part: bool = False) -> dict[str, float]:
        """The task's figures of held-out data, by all processes."""
        return self.task.evaluate(self, part=part)

    # --- speed ------------------------------------------------------------------------------------------------------

    def seconds_per_step(self, steps: int = 20) -> float:
        """Median time of a step, measured on steps that are then undone (the first, which compiles, not counted)."""
        before = {name: tensor.clone() for name, tensor in trained_tensors(self.model).items()}
        self.step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        load_trained_tensors(self.model, before)
        self._begin()
        return sorted(times)[len(times) // 2]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch of full rows."""
        return self.training.batch_size * self.task.context

    def utilization(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak that the model's arithmetic takes; None where the peak is not known."""
        peak = peak_flops(self.device, self.precision)
        flops = tokens_per_second * self.task.flops_per_token()
        return flops / (peak * self.world.size) if peak else None

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, named, for a checkpoint."""
        divided = self.placement.is_divided or not self.placement.is_whole
        return optimizer_tensors(self.optimizers, self.model, divided=divided)

    def state(self) -> dict[str, Any]:
        """All that resuming needs besides the tensors of the model and the optimizers."""
        return {
            "step": self.steps_done,
            "source": dict(self.source.state()),
            "data": self.source.fingerprint,
            "base": None if self.base is None else self.base.record(),
            "scaler": self.scaler.state(),
            "losses": self.guard.state(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: parameters, optimizer state, place in the data and in the schedule.

        Raises:
            ValueError: it is of another model, another base or other data.
        """
        state = checkpoint.state
        if state["data"] != self.source.fingerprint:
            raise ValueError(f"the data of this run are not those that {checkpoint.folder} was trained on")
        check_base(self.base, state.get("base"), checkpoint.folder)
        load_trained_tensors(self.model, checkpoint.model)
        load_optimizer_tensors(self.optimizers, self.model, checkpoint.optimizer)
        self.steps_done = state["step"]
        self.source.restore(state["source"])
        self.scaler.restore(state["scaler"])
        self.guard.restore(state["losses"])
