"""The processes of a run, as torchrun starts them: who this one is, and how they communicate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llmfast.training.distribution import failures

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # with rank 0 while it prepares data or saves; if it dies, the others know at once


@dataclass(frozen=True)
class World:
    """This process among all; a single process is rank 0 of 1 and communicates with nobody."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: dist.ProcessGroup | None = dataclasses.field(default=None, compare=False)
    """All processes, for what is no part of a step."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints, logs and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The sum over all processes (in place)."""
        if self.size > 1:
            dist.all_reduce(tensor, group=group)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """The largest over all processes, element by element (in place)."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            dist.barrier(self.control)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Run ``function`` in the main process while the others wait; they get None.

        If it fails, it fails in all, so that none waits for ever.
        """
        if not self.is_main:
            if (failure := self.broadcast(None)) is not None:
                raise failure
            return None
        try:
            result = function()
        except (ValueError, OSError, KeyboardInterrupt) as error:
            self.broadcast(error)
            raise
        except BaseException as error:
            self.broadcast(RuntimeError(f"rank 0 failed: {error!r}"))  # the others need not know its type
            raise
        self.broadcast(None)
        return result

    def broadcast(self, value: T) -> T:
        """Sends the main process's ``value`` to all processes and returns it."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, group=self.control)
        return box[0]

    def any(self, *flags: bool) -> list[bool]:
        """Whether each of the flags is set in any process."""
        return self.maximum(torch.tensor(flags, dtype=torch.int32)).bool().tolist()

    def check_agreement(self, **values: Any) -> None:
        """Check that all processes have the same values.

        Raises:
            ValueError: they do not; names the value and a rank that differs.
        """
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, values)
        for name, value in everyone[0].items():
            for rank, other in enumerate(everyone):
                if other[name] != value:
                    raise ValueError(
                        f"ranks disagree: {name} is {other[name]!r} on rank {rank}, but {value!r} on rank 0"
                    )


@contextlib.contextmanager
def world(device: str = "auto", *, minutes: float = 10.0) -> Iterator[World]:
    """The processes that torchrun started, connected (NCCL between GPUs, Gloo between CPUs); or one alone.

    Args:
        device: ``cpu`` for Gloo alone.
        minutes: how long a process waits for the others in a step.

    Raises:
        ValueError: more processes on this machine than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World()
        return
    this = World(
        rank=int(os.environ["RANK"]),
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
    )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        if this.local_rank >= torch.cuda.device_count():
            raise ValueError(f"{this.local_size} processes on a machine with {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(this.local_rank)
    # Gloo serves CPU tensors also where NCCL serves those on GPUs: checkpoints are written from copies on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(minutes=minutes))
    this = dataclasses.replace(this, control=dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield this
    except (ValueError, OSError, ModuleNotFoundError, KeyboardInterrupt):
        failures.announce()  # before the others find the connection closed
        raise
    finally:
        dist.destroy_process_group()
