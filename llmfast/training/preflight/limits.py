"""What a configuration asks of the processes and their memory, checked before anything is built."""

from __future__ import annotations

import torch

from llmfast.training.config import ParallelConfig, TrainingConfig
from llmfast.training.distribution.mesh import mesh_shape
from llmfast.training.distribution.world import World
from llmfast.training.preflight.hardware import total_memory

GIB = 2**30


def check_batch_size(training: TrainingConfig, processes: int) -> None:
    """Check that every batch, also in its warm-up, falls into equal parts for ``processes`` with data of their own.

    Raises:
        ValueError: one does not.
    """
    smallest = training.batch_size // (8 if training.batch_warmup else 1)
    parts = training.accumulate * processes
    if training.batch_size % parts or (training.batch_warmup and training.batch_size % 8) or smallest % processes:
        warm = ", and by 8 for training.batch_warmup" if training.batch_warmup else ""
        raise ValueError(
            f"training.batch_size {training.batch_size} must be divisible by training.accumulate "
            f"{training.accumulate} times {processes} processes{warm}"
        )


def check_context(training: TrainingConfig, context: int) -> None:
    """Check that a row of ``context`` tokens can be warmed up to.

    Raises:
        ValueError: it cannot.
    """
    if training.context_warmup and context % 8:
        raise ValueError(f"training.context_warmup needs a context divisible by 8, got {context}")


def share_of_process(parallel: ParallelConfig, world: World, experts: float) -> float:
    """The share of weights, gradients and optimizer state that one process keeps.

    Args:
        parallel: how they are divided between processes.
        world: the processes.
        experts: the share of them that belongs to experts.

    Raises:
        ValueError: they cannot be divided so.
    """
    rest, own = mesh_shape(parallel, world).copy, mesh_shape(parallel, world, "experts").copy
    return ((1 - experts) * rest + experts * own) / world.size


def check_memory(
    memory: dict[str, float], parallel: ParallelConfig, world: World, device: torch.device, *, experts: float = 0.0
) -> None:
    """Check that weights, gradients and optimizer state, which no batch size changes, fit the device.

    Args:
        memory: their bytes, by component.
        parallel: how they are divided between processes.
        world: the processes.
        device: of this process.
        experts: the share of the weights that belongs to experts.

    Raises:
        ValueError: they cannot fit; says what they need and what there is. Or ``parallel`` cannot be had with this
            number of processes.
    """
    if parallel.cpu_offload:
        device = torch.device("cpu")
    needed = sum(memory.values()) * share_of_process(parallel, world, experts)
    available = total_memory(device) / (world.local_size if device.type == "cpu" else 1)
    if needed > available:
        raise ValueError(
            f"{', '.join(memory)} of this model need {needed / GIB:,.1f} GiB per process, but there are "
            f"{available / GIB:,.1f} GiB on {device.type}: a smaller model, or more processes with "
            "parallel.strategy fsdp"
        )
