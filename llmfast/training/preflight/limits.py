"""What a configuration asks of the processes and their memory, checked before anything is built."""

from __future__ import annotations

import torch

from llmfast.models.memory import TrainingSetup, training_memory
from llmfast.training.config import RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.preflight.hardware import total_memory

GIB = 2**30


def check_batch_size(config: RunConfig, processes: int) -> None:
    """Check that every batch, also in its warm-up, falls into equal parts for ``processes`` with data of their own.

    Raises:
        ValueError: one does not.
    """
    training = config.training
    smallest = training.batch_size // (8 if training.batch_warmup else 1)
    parts = training.accumulate * processes
    if (
        training.batch_size % parts
        or (training.batch_warmup and training.batch_size % 8)
        or smallest % processes
    ):
        warm = ", and by 8 for training.batch_warmup" if training.batch_warmup else ""
        raise ValueError(
            f"training.batch_size {training.batch_size} must be divisible by training.accumulate "
            f"{training.accumulate} times {processes} processes{warm}"
        )
    if training.context_warmup and config.model.context % 8:
        raise ValueError(
            f"training.context_warmup needs a context divisible by 8, got {config.model.context}"
        )


def check_memory(config: RunConfig, world: World, device: torch.device) -> None:
    """Check that weights, gradients and optimizer state, which no batch size changes, fit the device.

    Raises:
        ValueError: they cannot; says what they need and what there is.
    """
    parallel = config.parallel
    if parallel.cpu_offload:
        device = torch.device("cpu")
    copies = {"ddp": parallel.tensor, "fsdp": world.size, "hsdp": parallel.group or world.local_size}
    setup = TrainingSetup(precision="float32", optimizer=config.training.optimizer)
    parts = training_memory(config.model, setup)
    needed = sum(parts[name] for name in ("weights", "gradients", "optimizer")) / copies[parallel.strategy]
    available = total_memory(device) / (world.local_size if device.type == "cpu" else 1)
    if needed > available:
        raise ValueError(
            f"{config.model.parameters:,} parameters need {needed / GIB:,.1f} GiB a process for weights, gradients and "
            f"optimizer state, but there are {available / GIB:,.1f} GiB on {device.type}: a smaller model, "
            "or more processes with parallel.strategy fsdp"
        )
