"""Checks before a long run: can the model memorize one batch, and what would the run cost?"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from llmfast.data.batch import IGNORED, Batch
from llmfast.kernels import NF4Linear
from llmfast.models.classifier import SequenceClassifier
from llmfast.models.decoder import Decoder
from llmfast.models.size import experts_share
from llmfast.tokenizer import Tokenizer
from llmfast.training.distribution.world import World
from llmfast.training.monitoring.display import clock, size
from llmfast.training.preflight.hardware import memory_in_use
from llmfast.training.preflight.limits import share_of_process
from llmfast.training.preflight.memory import TrainingSetup, training_memory
from llmfast.training.pretraining import Pretraining
from llmfast.training.session import Session, new_session
from llmfast.training.task import Task

MEMORIZED = 0.05  # of the first loss
TIMED_STEPS = 3
SHOWN_ROWS, SHOWN_CHARACTERS = 2, 600
TRAINED_STYLE = "bold green"


def overfit(
    config: Any,
    *,
    task: type[Task] = Pretraining,
    console: Console,
    world: World = World(),  # noqa: B008
) -> tuple[float, float]:
    """Train on the first batch alone, up to ``config.training.steps`` times; (first loss, last loss).

    A correct model can memorize one batch.

    Raises:
        ValueError: it did not.
    """
    plain = {"schedule": "constant", "weight_decay": 0.0, "batch_warmup": 0.0, "context_warmup": 0.0}
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **plain))
    with _trial(config, task, console, world) as session:
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


def describe_run(
    config: Any,
    *,
    task: type[Task] = Pretraining,
    console: Console,
    world: World = World(),  # noqa: B008
) -> None:
    """Say what a run would be: its size, memory and time as measured over a few steps, and its first batch as text."""
    with _trial(config, task, console, world) as session:
        trainer, training, model = session.trainer, config.training, config.model
        tokens = training.steps * trainer.tokens_per_step
        console.print(f"model       {model.parameters:,} parameters, {model.flops_per_token():.3g} FLOPs per token")
        console.print(
            f"training    {training.steps:,} steps of {trainer.tokens_per_step:,} tokens: {tokens:,} in all, "
            f"{training.steps * training.batch_size / trainer.source.rows:.2f} times the data, "
            f"{tokens / model.parameters:.1f} per parameter"
        )
        _show_batch(session, console)
        seconds = trainer.seconds_per_step(TIMED_STEPS)
        console.print(
            f"time        {seconds:.3f} s per step here, {trainer.tokens_per_step / seconds:,.0f} tokens/s: "
            f"{clock(seconds * training.steps)} for the run, without evaluations"
        )
        estimate = _memory(session)
        where = "a GPU" if world.size == 1 else f"each of {world.size} GPUs"
        console.print(f"memory      about {size(sum(estimate.values()))} on {where}: {_listed(estimate)}")
        console.print(f"            {size(memory_in_use(trainer.device))} was the peak of this process here")


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size(bytes)}" for name, bytes in sizes.items())


def _memory(session: Session) -> dict[str, float]:
    """Bytes of each component that a process has at the peak of a step on a GPU, with adapters, and with a base as it
    is stored."""
    model, fixed = session.config.model, session.task.memory()
    share = share_of_process(session.config.parallel, session.trainer.world, experts_share(model))
    parts = training_memory(model, _setup(session)) | fixed
    divided = {"weights in bfloat16", *fixed}
    return {part: count * (share if part in divided else 1) for part, count in parts.items() if count}


def _setup(session: Session) -> TrainingSetup:
    """What one process holds at a time, as far as memory depends on it."""
    trainer, training = session.trainer, session.trainer.training
    decoder = next(module for module in trainer.model.modules() if isinstance(module, Decoder))
    is_trained = any(parameter.requires_grad for parameter in decoder.head.parameters())
    return TrainingSetup(
        batch_size=training.batch_size // training.accumulate // trainer.placement.data_share.count,
        precision="float32" if trainer.precision == torch.float32 else "bfloat16",
        optimizer=training.optimizer,
        checkpointing=training.activation_checkpointing,
        head="none" if isinstance(trainer.model, SequenceClassifier) else "trained" if is_trained else "frozen",
        packed=sum(each.layout.numbers for each in decoder.modules() if isinstance(each, NF4Linear)),
    )


def _show_batch(session: Session, console: Console) -> None:
    """The first rows of the first batch as text, with the tokens that are trained in color."""
    trainer = session.trainer
    beginning = trainer.source.state()
    batch = trainer.source.next(trainer.training.batch_size)
    trainer.source.restore(beginning)
    console.print(f"first batch {batch.tokens.shape[0]} rows of {batch.tokens.shape[1]} tokens")
    if "targets" not in batch.columns:
        for row in batch.tokens[:SHOWN_ROWS].tolist():
            console.print(Text(f"  {session.task.tokenizer.decode(row)[:SHOWN_CHARACTERS]!r}"), soft_wrap=False)
        return
    console.print(Text.assemble("            ", ("what is trained", TRAINED_STYLE), " and what is not"))
    for tokens, targets in itertools.islice(_documents(batch), SHOWN_ROWS):
        console.print(Text("  ") + trained_text(session.task.tokenizer, tokens, targets), soft_wrap=False)


def _documents(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets of each document of a batch, or of each row, without padding behind the last target."""
    starts = torch.arange(batch.rows + 1) * batch.tokens.shape[1] if batch.cu_seqlens is None else batch.cu_seqlens
    tokens, targets = batch.tokens.flatten(), batch.targets.flatten()
    for start, end in itertools.pairwise(starts.tolist()):
        counted = (targets[start:end] != IGNORED).nonzero()
        if len(counted):
            stop = start + int(counted[-1]) + 1
            yield tokens[start:stop], targets[start:stop]


def trained_text(tokenizer: Tokenizer, tokens: Tensor, targets: Tensor) -> Text:
    """The text of one document, in which a token is colored where it is the target of the one before it.

    Line ends and the like are shown as in Python; the text is cut after SHOWN_CHARACTERS.
    """
    is_trained = [False, *(targets != IGNORED).tolist()]
    ids = [*tokens.tolist(), int(targets[-1])]  # the last one is only a target
    shown = Text()
    for flag, group in itertools.groupby(zip(ids, is_trained, strict=True), key=lambda pair: pair[1]):
        text = repr(tokenizer.decode([token for token, _ in group]))[1:-1]
        shown.append(text[: SHOWN_CHARACTERS - len(shown)], TRAINED_STYLE if flag else None)
    return shown


@contextlib.contextmanager
def _trial(config: Any, task: type[Task], console: Console, world: World) -> Iterator[Session]:
    """A session of all processes in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="llmfast-") if world.is_main else contextlib.nullcontext("") as own:
        folder = Path(world.broadcast(own)) / "run"
        yield new_session(folder, config, task=task, report=console.print, world=world)
        world.barrier()
