"""Saving a session and going on from what was saved: by one process or by all, at once or in the background."""

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
from llmfast.tokenizer import Tokenizer
from llmfast.training.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    drop_old_checkpoints,
    join_scalars,
    model_tensors,
    read_checkpoint,
    read_state,
    save_checkpoint,
    split_scalars,
    write_state,
)
from llmfast.training.optimizers.build import decoded
from llmfast.training.run_folder import Run
from llmfast.training.trainer import Trainer

Tensors = dict[str, Tensor]


class Saver:
    """Writes the checkpoints of a run; every process has one and calls it at the same steps.

    With ``training.async_checkpoints`` the tensors are copied and written in a thread while training goes on; an error
    there is raised by the next call of any method.
    """

    def __init__(self, run: Run, trainer: Trainer, tokenizer: Tokenizer):
        self.run, self.trainer, self.tokenizer = run, trainer, tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future, Callable[[], None]] | None = None
        # What the threads of a background save say to each other must not mix with what training says.
        in_background = trainer.config.training.async_checkpoints and trainer.placement.is_divided
        self._group = dist.new_group(backend="gloo") if in_background else None

    def save(self, *, validation_loss: float | None = None) -> None:
        """Save where the trainer is.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        self.wait()
        trainer = self.trainer
        background = trainer.config.training.async_checkpoints
        state = trainer.state() | {"validation_loss": validation_loss}
        tensors = (model_tensors(trainer.model), trainer.optimizer_tensors())
        model, optimizer = map(trainer.placement.whole, tensors)
        if trainer.placement.is_divided:
            self._pending = self._begin_divided(state, model, optimizer)
        elif not trainer.world.is_main:
            return
        elif background:
            copies = [_on_cpu(model), _on_cpu(optimizer)]
            self._pending = self._thread.submit(self._write, state, *copies), self._drop_old
        else:
            self._write(state, model, optimizer)
            self._drop_old()
        if not background:
            self.wait()

    def wait(self) -> None:
        """Return when what was begun is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            written, finish = pending
            written.result()
            finish()

    def poll(self) -> None:
        """Complete what was begun if it is written by now."""
        if self._pending is None:
            return
        waiting = not self._pending[0].done()
        if self.trainer.placement.is_divided:
            waiting = self.trainer.world.any(waiting)
        if not waiting:
            self.wait()

    def _write(self, state: dict[str, Any], model: Tensors, optimizer: Tensors) -> None:
        save_checkpoint(
            self.run.folder,
            state,
            config=self.trainer.config.model,
            model=model,
            optimizer=optimizer,
            tokenizer=self.tokenizer,
        )

    def _begin_divided(
        self, state: dict[str, Any], model: Tensors, optimizer: Tensors
    ) -> tuple[Future, Callable[[], None]]:
        """All processes write into one folder; the first one then completes it and puts it in its place."""
        from llmfast.training.checkpoints.sharded import name_files, write_divided  # half a second of imports

        world = self.trainer.world
        # Scalars go another way: in consolidating them, torch.distributed.checkpoint (2.13) writes zeros.
        optimizer, scalars = split_scalars(optimizer)
        at_end = contextlib.ExitStack()
        partial = None
        if world.is_main:
            partial = at_end.enter_context(atomic_folder(checkpoint_folder(self.run.folder, state["step"])))
        partial = world.broadcast(partial)

        def complete() -> None:
            with at_end:
                name_files(partial)
                write_state(partial, state | {"scalars": scalars}, self.trainer.config.model, self.tokenizer)

        def finish() -> None:
            world.barrier()
            world.on_main(complete)
            if world.is_main:
                self._drop_old()

        return write_divided(partial, model, optimizer, self._group), finish

    def _drop_old(self) -> None:
        training = self.trainer.config.training
        drop_old_checkpoints(self.run.folder, keep_last=training.keep_last, keep_best=training.keep_best)


def restore(trainer: Trainer, folder: Path) -> None:
    """Continue from a checkpoint, whatever number of processes wrote it.

    Raises:
        ValueError: a file is missing or damaged, or of another model or other data.
    """
    placement = trainer.placement
    if not placement.is_divided:
        found = read_checkpoint(folder)
        optimizer = found.optimizer if placement.tensor is None else decoded(found.optimizer)
        mine = {"model": placement.mine(found.model), "optimizer": placement.mine(optimizer)}
        trainer.restore(dataclasses.replace(found, **mine))
        return
    from llmfast.training.checkpoints.sharded import read_divided

    trainer.world.on_main(lambda: read_state(folder, verify=True))
    model = model_tensors(trainer.model)
    state = read_state(folder)
    optimizer = join_scalars(decoded(read_divided(folder, model)), state["scalars"])
    trainer.restore(Checkpoint(folder, state, model, optimizer))


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
