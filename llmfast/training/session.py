"""The start of a run: a new folder made ready, or an old one opened where it stopped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmfast.data.prepare import Prepared, open_prepared, prepare
from llmfast.training.checkpoint import checkpoints, read_checkpoint
from llmfast.training.config import RunConfig
from llmfast.training.run import Run
from llmfast.training.trainer import Trainer


@dataclass(frozen=True)
class Session:
    """A run with its data and its trainer, ready for ``fit``."""

    run: Run
    prepared: Prepared
    trainer: Trainer


def new_session(
    folder: Path,
    config: RunConfig,
    *,
    report: Callable[[str], None],
    plan: Callable[[Trainer], None] = lambda trainer: None,
) -> Session:
    """Prepare the data in a new run folder, build the trainer, let ``plan`` complete the configuration, and save it.

    If anything fails, or is interrupted, no folder is left.

    Raises:
        ValueError: the folder holds something already; or what ``prepare`` and ``Trainer`` refuse.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; choose another folder, or resume it")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        run = Run(folder)
        prepared = prepare(config.data, run.data, report=report)
        config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
        trainer = Trainer(config, prepared.train)
        plan(trainer)
        run.save_config(config)
    except BaseException:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        raise
    return Session(run, prepared, trainer)


def resumed_session(folder: Path) -> Session:
    """A run as its newest checkpoint left it; one without a checkpoint begins at its first step.

    Raises:
        ValueError: no run there, or a damaged file.
    """
    run = Run(folder)
    if not run.config_file.exists():
        raise ValueError(f"{folder} holds no run to resume: it has no {run.config_file.name}")
    prepared = open_prepared(run.data)
    trainer = Trainer(run.load_config(), prepared.train)
    if found := checkpoints(folder):
        trainer.restore(read_checkpoint(found[-1]))
    return Session(run, prepared, trainer)
