"""Checks before a long run: can the model memorize one batch, and what would the run cost?"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from llmfast.training.config import RunConfig
from llmfast.training.monitoring.display import clock, size
from llmfast.training.preflight.hardware import memory_in_use
from llmfast.training.preflight.memory import TrainingSetup, training_memory
from llmfast.training.session import Session, new_session

MEMORIZED = 0.05  # of the first loss
TIMED_STEPS = 3
SHOWN_ROWS, SHOWN_CHARACTERS = 2, 300


def overfit(config: RunConfig, *, console: Console) -> tuple[float, float]:
    """Train on the first batch alone, up to ``config.training.steps`` times; (first loss, last loss).

    A correct model can memorize one batch.

    Raises:
        ValueError: it did not.
    """
    plain = {"schedule": "constant", "weight_decay": 0.0, "batch_warmup": 0.0, "context_warmup": 0.0}
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **plain))
    with _trial(config, console) as session:
        trainer = session.trainer
        losses, beginning = [], trainer.source.state()
        while len(losses) < config.training.steps:
            losses.append(float(trainer.step().loss))
            trainer.source.restore(beginning)
            if losses[-1] < MEMORIZED * losses[0]:
                break
    found = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses):,} steps on one batch"
    if losses[-1] >= MEMORIZED * losses[0]:
        raise ValueError(
            f"{found}: not memorized (below {MEMORIZED * losses[0]:.3f}); more training.steps or another "
            "training.learning_rate may help, otherwise the model cannot learn"
        )
    console.print(f"one batch   {found}: memorized")
    return losses[0], losses[-1]


def describe_run(config: RunConfig, *, console: Console) -> None:
    """Say what a run would be: its size, memory and time as measured over a few steps, and its first batch as text."""
    with _trial(config, console) as session:
        trainer, training, model = session.trainer, config.training, config.model
        tokens = training.steps * trainer.tokens_per_step
        console.print(f"model       {model.parameters:,} parameters, {model.flops_per_token():.3g} FLOPs per token")
        console.print(
            f"training    {training.steps:,} steps of {trainer.tokens_per_step:,} tokens: {tokens:,} in all, "
            f"{tokens / len(session.task.prepared.train):.2f} times the data, "
            f"{tokens / model.parameters:.1f} per parameter"
        )
        _show_batch(session, console)
        seconds = trainer.seconds_per_step(TIMED_STEPS)
        console.print(
            f"time        {seconds:.3f} s per step here, {trainer.tokens_per_step / seconds:,.0f} tokens/s: "
            f"{clock(seconds * training.steps)} for the run, without evaluations"
        )
        estimate = training_memory(model, _setup(session))
        console.print(f"memory      about {size(sum(estimate.values()))} on a GPU: {_listed(estimate)}")
        console.print(f"            {size(memory_in_use(trainer.device))} was the peak of this process here")


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size(bytes)}" for name, bytes in sizes.items())


def _setup(session: Session) -> TrainingSetup:
    """What one process holds at a time, as far as memory depends on it."""
    trainer, training = session.trainer, session.trainer.training
    return TrainingSetup(
        batch_size=training.batch_size // training.accumulate,
        precision="float32" if trainer.precision == torch.float32 else "bfloat16",
        optimizer=training.optimizer,
        checkpointing=training.activation_checkpointing,
    )


def _show_batch(session: Session, console: Console) -> None:
    """The first rows of the first batch, decoded."""
    trainer = session.trainer
    beginning = trainer.source.state()
    batch = trainer.source.next(trainer.training.batch_size)
    trainer.source.restore(beginning)
    console.print(f"first batch {batch.tokens.shape[0]} rows of {batch.tokens.shape[1]} tokens")
    for row in batch.tokens[:SHOWN_ROWS].tolist():
        text = session.task.prepared.tokenizer.decode(row)[:SHOWN_CHARACTERS]
        console.print(Text(f"  {text!r}"), soft_wrap=False)


@contextlib.contextmanager
def _trial(config: RunConfig, console: Console) -> Iterator[Session]:
    """A session in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="llmfast-") as folder:
        yield new_session(Path(folder) / "run", config, report=console.print)
