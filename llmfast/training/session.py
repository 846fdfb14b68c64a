"""The start of a run: a new folder made ready, or an old one opened where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmfast.config import to_dict
from llmfast.data.journal import JOURNAL
from llmfast.data.prepare import Prepared, describe, open_prepared, prepare
from llmfast.training.checkpoints.checkpoint import checkpoints
from llmfast.training.config import RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.run_folder import Run
from llmfast.training.checkpoints.saver import restore
from llmfast.training.trainer import Trainer

Report = Callable[[str], None]


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
    report: Report,
    plan: Callable[[Trainer], None] = lambda trainer: None,
    world: World = World(),  # noqa: B008
) -> Session:
    """Prepare the data in a new run folder, build the trainer, let ``plan`` complete the configuration, and save it.

    If anything fails, or is interrupted, no folder is left; what a killed start left is begun anew. With several
    processes the first one prepares.

    Raises:
        ValueError: the folder holds something already; or what ``prepare`` and ``Trainer`` refuse.
    """
    run = Run(folder)
    made: list[Path] = []

    def begin() -> None:
        if folder.exists() and not _is_free(folder):
            raise ValueError(f"{folder} exists already; choose another folder, or resume it")
        made.extend(path for path in (folder, *folder.parents) if not path.exists())
        if not config.data.prepared:
            prepare(config.data, run.data, report=report)

    try:
        world.on_main(begin)
        prepared = _open(run, config, world)
        if config.data.prepared:
            describe(prepared, report)
        config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
        trainer = _trainer(config, prepared, world)
        plan(trainer)
        world.on_main(lambda: run.save_config(config))
    except BaseException:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        raise
    return Session(run, prepared, trainer)


def _is_free(folder: Path) -> bool:
    """Whether nothing is in ``folder`` but the data of a start that was killed before it wrote its configuration."""
    return folder.is_dir() and all(
        (path / JOURNAL).exists() if path.name == "data" else path.name.endswith(".partial")
        for path in folder.iterdir()
    )


def resumed_session(
    folder: Path,
    *,
    learning_rate: float | None = None,
    skip_damaged: bool = False,
    report: Report = lambda line: None,
    world: World = World(),  # noqa: B008
) -> Session:
    """A run as its newest checkpoint left it; one without a checkpoint begins at its first step.

    Args:
        folder: the run.
        learning_rate: a new peak learning rate, from here on; that of Muon changes by the same factor.
        skip_damaged: go on from an earlier checkpoint where the newest is damaged, and report it, instead of failing.
        report: is told what was skipped.
        world: the processes of the run.

    Raises:
        ValueError: no run there, a damaged file, or a learning rate that is not positive.
    """
    run = Run(folder)
    if not run.config_file.exists():
        raise ValueError(f"{folder} holds no run to resume: it has no {run.config_file.name}")
    config = run.load_config()
    if learning_rate is not None:
        set_learning_rate(config, learning_rate)
        world.on_main(lambda: run.save_config(config))
    prepared = _open(run, config, world)
    trainer = _trainer(config, prepared, world)
    for found in reversed(checkpoints(folder)):
        try:
            restore(trainer, found)
        except ValueError as error:
            if not skip_damaged:
                raise
            report(f"skipped     {found.name}: {error}")
            continue
        break
    world.check_agreement(step=trainer.steps_done)
    return Session(run, prepared, trainer)


def set_learning_rate(config: RunConfig, learning_rate: float) -> None:
    """Change the peak learning rate, and Muon's by the same factor.

    Raises:
        ValueError: it is not positive.
    """
    training = config.training
    if not learning_rate > 0:
        raise ValueError(f"the learning rate must be positive, got {learning_rate}")
    factor = learning_rate / training.learning_rate
    config.training = dataclasses.replace(
        training, learning_rate=learning_rate, matrix_learning_rate=training.matrix_learning_rate * factor
    )


def _open(run: Run, config: RunConfig, world: World) -> Prepared:
    """The run's data; one process of a machine checks the checksums of the token files."""
    folder = Path(config.data.prepared) if config.data.prepared else run.data
    return open_prepared(folder, verify=world.local_rank == 0)


def _trainer(config: RunConfig, prepared: Prepared, world: World) -> Trainer:
    settings = json.dumps(to_dict(config), sort_keys=True)
    world.check_agreement(
        configuration=hashlib.sha256(settings.encode()).hexdigest()[:12],
        data=prepared.train.checksum[:12],
        tokenizer=prepared.tokenizer.fingerprint[:12],
    )
    return Trainer(config, prepared.train, world)
