"""Saving a session: by one process or by all, at once or in the background, and what to do when the disk is full."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llmfast.training.checkpoint import (
    checkpoint_folder,
    drop_old_checkpoints,
    model_tensors,
    save_checkpoint,
)
from llmfast.training.session import Session

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Saver:
    """Writes the checkpoints of a session.

    With ``training.async_checkpoints`` the tensors are copied and written in a thread while training goes on; an error
    there is raised by the next ``save`` or by ``wait``.
    """

    def __init__(self, session: Session):
        self.session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, *, validation_loss: float | None = None) -> None:
        """Save where the trainer is (all processes must call it).

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        self.wait()
        write = self._writer(validation_loss)
        if self.session.trainer.config.training.async_checkpoints:
            self._pending = self._thread.submit(write)
        else:
            write()

    def wait(self) -> None:
        """Return when what was begun is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _writer(self, validation_loss: float | None) -> Callable[[], Path]:
        """A function that writes the present state, whatever the trainer does meanwhile."""
        trainer, run = self.session.trainer, self.session.run
        training = trainer.config.training
        state = trainer.state() | {"validation_loss": validation_loss}
        model, optimizer = model_tensors(trainer.model), trainer.optimizer_tensors()
        if training.async_checkpoints:
            model, optimizer = (
                {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
                for tensors in (model, optimizer)
            )

        def write() -> Path:
            if not trainer.world.is_main:
                return checkpoint_folder(run.folder, state["step"])
            folder = save_checkpoint(
                run.folder,
                state,
                config=trainer.config.model,
                model=model,
                optimizer=optimizer,
                tokenizer=self.session.prepared.tokenizer,
            )
            drop_old_checkpoints(run.folder, keep_last=training.keep_last, keep_best=training.keep_best)
            return folder

        return write


def save(session: Session, *, validation_loss: float | None = None) -> Path:
    """Write a checkpoint of where the session's trainer is; returns its folder."""
    saver = Saver(session)
    saver.save(validation_loss=validation_loss)
    saver.wait()
    return checkpoint_folder(session.run.folder, session.trainer.steps_done)
