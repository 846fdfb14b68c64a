"""Saving a run and resuming from what was saved: by one process or by all, at once or in the background."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from llmfast.files import atomic_folder
from llmfast.models.tensors import trained_tensors
from llmfast.remote import upload
from llmfast.training.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    drop_old_checkpoints,
    join_scalars,
    read_checkpoint,
    read_state,
    save_checkpoint,
    split_scalars,
    write_state,
)
from llmfast.training.optimizers.build import decoded
from llmfast.training.trainer import Trainer

Tensors = dict[str, Tensor]


class Saver:
    """Writes the checkpoints of a run; every process has one and calls it at the same steps.

    With ``training.async_checkpoints`` the tensors are copied and written in a thread while training continues; an
    error there is raised by the next call of any method.
    """

    def __init__(self, run: Path, trainer: Trainer):
        self.run, self.trainer = run, trainer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future, Callable[[], None]] | None = None
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._copying: Future[None] | None = None
        # Background saves use their own process group, so that their messages do not mix with those of training.
        in_background = trainer.training.async_checkpoints and trainer.placement.saves_in_parts
        self._group = dist.new_group(backend="gloo") if in_background else None

    def save(self, *, validation_loss: float | None = None) -> None:
        """Save where the trainer is.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        self.wait()
        trainer = self.trainer
        background = trainer.training.async_checkpoints
        state = trainer.state() | {"validation_loss": validation_loss}
        tensors = (trained_tensors(trainer.model), trainer.optimizer_tensors())
        model, optimizer = map(trainer.placement.gather, tensors)
        if trainer.placement.saves_in_parts:
            self._pending = self._begin_divided(state, model, optimizer)
        elif not trainer.world.is_main:
            return
        elif background:
            state["source"] = {
                name: value.clone() if isinstance(value, Tensor) else value for name, value in state["source"].items()
            }
            copies = [_on_cpu(model), _on_cpu(optimizer)]
            self._pending = self._thread.submit(self._write, state, *copies), self._complete
        else:
            self._write(state, model, optimizer)
            self._complete()
        if not background:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            written, finish = pending
            written.result()
            finish()

    def poll(self) -> None:
        """Complete the checkpoint that was begun if it is written by now."""
        if self._pending is None:
            return
        waiting = not self._pending[0].done()
        if self.trainer.placement.saves_in_parts:
            (waiting,) = self.trainer.world.any(waiting)
        if not waiting:
            self.wait()

    def finish_copying(self) -> str | None:
        """Wait until the newest copy at ``training.copy_to`` is whole; returns why it is not, if it failed."""
        copying, self._copying = self._copying, None
        if copying is None:
            return None
        error = copying.exception()
        if error is not None and not isinstance(error, ValueError):
            raise error
        return None if error is None else str(error)

    def poll_copying(self) -> str | None:
        """Why the newest copy at ``training.copy_to`` failed, if it did by now."""
        return self.finish_copying() if self._copying is not None and self._copying.done() else None

    def _write(self, state: dict[str, Any], model: Tensors, optimizer: Tensors) -> None:
        save_checkpoint(self.run, state, model=model, optimizer=optimizer, save_assets=self.trainer.task.save_assets)

    def _begin_divided(
        self, state: dict[str, Any], model: Tensors, optimizer: Tensors
    ) -> tuple[Future, Callable[[], None]]:
        """All processes write into one folder; the first one then completes it and puts it in its place."""
        # Importing it takes half a second.
        from llmfast.training.checkpoints.sharded import name_files, write_sharded

        world = self.trainer.world
        # Scalars go another way: torch.distributed.checkpoint (2.13) writes zeros when it consolidates them.
        optimizer, scalars = split_scalars(optimizer)
        at_end = contextlib.ExitStack()
        partial = None
        if world.is_main:
            partial = at_end.enter_context(atomic_folder(checkpoint_folder(self.run, state["step"])))
        partial = world.broadcast(partial)

        def complete() -> None:
            with at_end:
                name_files(partial)
                write_state(partial, state | {"scalars": scalars}, self.trainer.task.save_assets)

        def finish() -> None:
            world.barrier()
            world.on_main(complete)
            if world.is_main:
                self._complete()

        return write_sharded(partial, model, optimizer, self._group), finish

    def _complete(self) -> None:
        """What the first process does once a checkpoint is on the disk."""
        training = self.trainer.training
        drop_old_checkpoints(self.run, keep_last=training.keep_last, keep_best=training.keep_best)
        # While one copy is under way no other begins; the one after it takes the newest files.
        if training.copy_to and (self._copying is None or self._copying.done()):
            self._copying = self._copier.submit(upload, self.run, training.copy_to)


def restore(trainer: Trainer, folder: Path) -> None:
    """Continue from a checkpoint, whatever number of processes wrote it.

    Raises:
        ValueError: a file is missing or damaged, or of another model, base or other data.
    """
    placement = trainer.placement
    if not placement.saves_in_parts:
        found = read_checkpoint(folder)
        optimizer = found.optimizer if placement.tensor is None else decoded(found.optimizer)
        own = {"model": placement.shard(found.model), "optimizer": placement.shard(optimizer)}
        trainer.restore(dataclasses.replace(found, **own))
        return
    from llmfast.training.checkpoints.sharded import read_sharded

    trainer.world.on_main(lambda: read_state(folder, verify=True))
    model = trained_tensors(trainer.model)
    state = read_state(folder)
    optimizer = join_scalars(decoded(read_sharded(folder, model)), state["scalars"])
    trainer.restore(Checkpoint(folder, state, model, optimizer))


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
