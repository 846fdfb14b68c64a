"""One optimizer step after another: the model, its optimizers and its place in the data, without any display."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmfast.data.loader import IGNORED, Batch, Loader
from llmfast.data.order import random_integer
from llmfast.data.shards import TokenShards
from llmfast.data.windows import PackedWindows, StreamWindows
from llmfast.evaluation.perplexity import Evaluation, evaluate
from llmfast.models.decoder import Decoder
from llmfast.training.checkpoints.checkpoint import Checkpoint, load_model_tensors, model_tensors
from llmfast.training.config import RunConfig
from llmfast.training.preflight.process import prepare_process
from llmfast.training.distribution.world import World
from llmfast.training.monitoring.guard import Guard, LossScaler
from llmfast.training.preflight.hardware import can_compile, choose_device, choose_precision, peak_flops
from llmfast.training.preflight.limits import check_batch_size, check_memory
from llmfast.training.optimizers.build import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from llmfast.training.distribution.placement import Placement
from llmfast.training.schedule import batch_size_at, context_at, learning_rate_factor


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    loss: Tensor
    """Mean loss over the targets of the whole batch, before the update, nats per token."""
    gradient_norm: Tensor
    """Before clipping."""
    learning_rate_factor: float
    tokens: int
    """Tokens in the batch, all processes together."""
    routing: dict[str, float] = field(default_factory=dict)
    """How evenly experts were used, where the model has any."""
    fault: str | None = None
    """Why the step was not taken; None if it was."""
    batch: Batch | None = None
    """This process's rows, where there was a fault."""


class Trainer:
    """The state of a run and the one operation on it, ``step``.

    Everything it does is decided by ``config`` and ``shards``: on one machine's CPU two trainers give bit-equal losses,
    and one restored from a checkpoint continues as if it had never stopped.

    Raises:
        ValueError: settings that cannot be had with this data or this number of processes.
    """

    def __init__(self, config: RunConfig, shards: TokenShards, world: World = World()):  # noqa: B008
        training = config.training
        self.config, self.shards, self.world = config, shards, world
        self.device = choose_device(training.device)
        self.precision = choose_precision(training.precision, self.device)
        self.compiled = training.compile and can_compile(self.device)
        check_memory(config, world, self.device)
        if self.device.type == "cpu":
            prepare_process()
        generator = torch.Generator().manual_seed(training.seed)
        self.placement = Placement(
            Decoder(config.model, generator=generator),
            config.parallel,
            world,
            device=self.device,
            precision=self.precision,
            compile=self.compiled,
        )
        self.model: Decoder = self.placement.model
        self.model.activation_checkpointing = training.activation_checkpointing
        windows = PackedWindows if config.data.packing == "best_fit" else StreamWindows
        self.windows = windows(shards, config.model.context)
        check_batch_size(config, self.placement.data_share.count)
        self._begin()

    def _begin(self) -> None:
        training = self.config.training
        self.steps_done = 0
        self.optimizers = build_optimizers(self.model, training, self.placement.shardings)
        self.scaler = LossScaler(self.precision == torch.float16)
        self.guard = Guard(training.spike)
        self.loader = Loader(
            self.windows,
            seed=training.seed,
            share=self.placement.data_share,
            document_masks=self.config.data.document_masks,
        )

    def step(self) -> StepResult:
        """One optimizer step on the next batch.

        A batch is worked through in ``accumulate`` parts; each part's loss counts by its share of the batch's targets
        over all processes, so that the gradient is that of the whole batch. A step whose loss or gradient is bad
        changes nothing but the place in the data.
        """
        training = self.config.training
        factor = learning_rate_factor(training, self.steps_done)
        set_learning_rate(self.optimizers, factor)
        # Decided by the step: dropout needs no state to be saved, and continues exactly.
        torch.manual_seed(
            random_integer((training.seed, self.steps_done, self.placement.data_share.index)) >> 1
        )
        context = context_at(training, self.config.model.context, self.steps_done)
        batch_size = batch_size_at(training, self.steps_done)
        batch = self.loader.next(batch_size, context).to(self.device)
        loss = self._backward(batch, context)
        norm = self.placement.gradient_norm() / self.scaler.scale
        routing = _routing_figures(self.model)
        fault = self._update(float(loss), norm)
        self.steps_done += 1
        tokens = batch_size * self.config.model.context
        return StepResult(loss, norm, factor, tokens, routing, fault, batch if fault else None)

    def _backward(self, batch: Batch, context: int) -> Tensor:
        """Gradients of the mean loss over all processes' targets; returns that loss."""
        size = (
            self.world.size
        )  # tensor-parallel processes count the same targets: both sums are as many times too large
        counted = self.world.sum((batch.targets != IGNORED).sum())
        rows = (
            self.config.training.batch_size
            // self.config.training.accumulate
            // self.placement.data_share.count
        )
        parts = batch.split(rows * self.config.model.context // context)
        loss = torch.zeros((), device=self.device)
        for part in parts:
            share = (part.targets != IGNORED).sum() / counted
            with self.placement.part(last=part is parts[-1]):
                with self.autocast():
                    part_loss = self.forward(part) * share
                # Averaged over processes on the way, hence times their number.
                self.scaler.scaled(part_loss * size if size > 1 else part_loss).backward()
            loss += part_loss.detach()
        return self.world.sum(loss)

    def _update(self, loss: float, norm: Tensor) -> str | None:
        """Change the weights by the gradient, or say why not."""
        overflow = self.scaler.enabled and math.isfinite(loss) and not torch.isfinite(norm)
        self.scaler.update(finite=not overflow)
        if overflow and self.scaler.scale >= 1:
            fault = None  # of no consequence: the scale is halved and the next step goes on
        else:
            fault = self.guard.fault(loss, float(norm))
        if not overflow and fault is None:
            clip = min(1.0, self.config.training.clip_norm / (float(norm) + 1e-6))
            self.placement.scale_gradients(clip / self.scaler.scale)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.balance_experts()
        self.model.expert_counts.zero_()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return fault

    def forward(self, batch: Batch) -> Tensor:
        """The model's mean loss on a batch."""
        if batch.cu_seqlens is None:
            return self.placement.forward(batch.tokens, batch.targets)
        return self.placement.forward(batch.tokens, batch.targets, cu_seqlens=batch.cu_seqlens)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the run's precision; parameters and reductions stay float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def evaluate(self, shards: TokenShards, **options: int | None) -> Evaluation:
        """``llmfast.evaluation.perplexity.evaluate`` on this trainer's model, in its precision, by all processes."""
        with self.inference():
            return evaluate(self.model, shards, autocast=self.autocast(), team=self.placement.team, **options)

    @contextlib.contextmanager
    def inference(self) -> Iterator[Decoder]:
        """The model without dropout, for evaluation and samples."""
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()

    def seconds_per_step(self, steps: int = 20) -> float:
        """Median time of a step, measured on steps that are then undone (the first, which compiles, not counted)."""
        before = {name: tensor.clone() for name, tensor in model_tensors(self.model).items()}
        self.step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        load_model_tensors(self.model, before)
        self._begin()
        return sorted(times)[len(times) // 2]

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, named, for a checkpoint."""
        divided = self.placement.is_divided or self.placement.tensor is not None
        return optimizer_tensors(self.optimizers, self.model, divided=divided)

    def state(self) -> dict[str, Any]:
        """All that continuing needs besides tensors, as plain values."""
        return {
            "step": self.steps_done,
            "position": self.loader.position,
            "data": self.shards.checksum,
            "scaler": self.scaler.state(),
            "losses": self.guard.state(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: parameters, optimizer state, place in the data and in the schedule.

        Raises:
            ValueError: it is of another model or of other data.
        """
        state = checkpoint.state
        if state["data"] != self.shards.checksum:
            raise ValueError(
                f"the token shards in {self.shards.folder} are not those that {checkpoint.folder} was trained on"
            )
        load_model_tensors(self.model, checkpoint.model)
        load_optimizer_tensors(self.optimizers, self.model, checkpoint.optimizer)
        self.steps_done, self.loader.position = state["step"], state["position"]
        self.scaler.restore(state["scaler"])
        self.guard.restore(state["losses"])

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a full batch."""
        return self.config.training.batch_size * self.config.model.context

    def utilisation(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak that the model's arithmetic takes; None where the peak is not known."""
        peak = peak_flops(self.device, self.precision)
        flops = tokens_per_second * self.config.model.flops_per_token()
        return flops / (peak * self.world.size) if peak else None


def _routing_figures(model: Decoder) -> dict[str, float]:
    """The worst layer's imbalance, and the experts without a token in all layers, of this step and process."""
    statistics = model.router_statistics()
    if not statistics:
        return {}
    return {
        "expert_max_violation": statistics["max_violation"].max().item(),
        "experts_unused": statistics["unused"].sum().item(),
    }
