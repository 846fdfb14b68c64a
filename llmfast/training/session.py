"""The start of a run: a new folder made ready, or an old one opened where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.config import differences, to_dict, with_settings
from llmfast.data.journal import JOURNAL
from llmfast.models.folder import checkpoints, step_of
from llmfast.training.checkpoints.saver import restore
from llmfast.training.config import RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.preflight.needs import check_needs, check_watching
from llmfast.training.pretraining import Pretraining
from llmfast.training.run_folder import RunFolder
from llmfast.training.task import Report, Task
from llmfast.training.trainer import Trainer

MIB = 2**20


@dataclass(frozen=True)
class Session:
    """A run with its task and its trainer, ready for ``fit``."""

    run: RunFolder
    task: Task
    trainer: Trainer

    @property
    def config(self) -> Any:
        return self.task.config


def new_session(
    folder: Path,
    config: Any,
    *,
    report: Report,
    task: type[Task] = Pretraining,
    plan: Callable[[Trainer], None] = lambda trainer: None,
    world: World = World(),  # noqa: B008
) -> Session:
    """Prepare the data in a new run folder, build the trainer, let ``plan`` complete the configuration, and save it.

    What the run needs of this machine is checked first. If anything fails, or is interrupted, no folder is left; what a
    killed start left is begun again. With several processes the first one prepares.

    Raises:
        ValueError: the folder holds something already; or what the task and ``Trainer`` refuse.
    """
    check_needs(config, world)
    run = RunFolder(folder)
    made: list[Path] = []

    def begin() -> None:
        if folder.exists() and not _is_free(folder):
            raise ValueError(f"{folder} exists already; choose another folder, or resume it")
        made.extend(path for path in (folder, *folder.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        run.lock()
        task.prepare(config, run.data, report=report)

    try:
        world.on_main(begin)
        opened = _open(task, config, run, world, begins=True, report=report)
        trainer = _trainer(opened, world)
        if trainer.parameters.share < 1:
            report(f"training    {trainer.parameters}")
            report(
                "memory      " + ", ".join(f"{name} {size / MIB:,.1f} MiB" for name, size in opened.memory().items())
            )
        plan(trainer)
        world.on_main(lambda: run.save_config(config))
    except BaseException:
        run.unlock()
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        raise
    return Session(run, opened, trainer)


def _is_free(folder: Path) -> bool:
    """Whether nothing is in ``folder`` but the data of a start that was killed before it wrote its configuration."""
    return folder.is_dir() and all(
        (path / JOURNAL).exists() if path.name == "data" else path.name == ".lock" or path.name.endswith(".partial")
        for path in folder.iterdir()
    )


def resumed_session(
    folder: Path,
    *,
    task: type[Task] = Pretraining,
    config: Any = None,
    learning_rate: float | None = None,
    skip_damaged: bool = False,
    report: Report = lambda line: None,
    world: World = World(),  # noqa: B008
) -> Session:
    """A run as its newest checkpoint left it; one without a checkpoint begins at its first step.

    Args:
        folder: the run.
        task: what is trained.
        config: what its configuration shall be from here on; as it was, if None. It may differ in what ``CHANGEABLE``
            lists, and in how processes divide the work.
        learning_rate: a new peak learning rate, from here on; that of Muon changes by the same factor.
        skip_damaged: resume from an earlier checkpoint where the newest is damaged, and report it, instead of failing.
        report: is called with a line for each checkpoint skipped.
        world: the processes of the run.

    Raises:
        ValueError: no run of this task there, a damaged file, a learning rate that is not positive, or a setting that
            cannot change.
    """
    run = RunFolder(folder)
    if not run.config_file.exists():
        raise ValueError(f"{folder} holds no run to resume: it has no {run.config_file.name}")
    try:
        saved_config = run.load_config(task.config_class)
        first_config = run.load_first_config(task.config_class)
    except ValueError as error:
        raise ValueError(f"{folder} is no run that llmfast {task.command} can resume: {error}") from None
    config = saved_config if config is None else changed_config(saved_config, config, report, first_config)
    saved = checkpoints(folder)
    if saved and config.training.steps < min(saved_config.training.steps, step_of(saved[-1])):
        raise ValueError(f"training.steps is {config.training.steps}, but {folder} has done {step_of(saved[-1])} steps")
    check_watching(config.training)
    world.on_main(run.lock)
    if learning_rate is not None:
        set_learning_rate(config, learning_rate)
    if config is not saved_config or learning_rate is not None:
        world.on_main(lambda: run.change_config(config))
    trainer = _trainer(_open(task, config, run, world, begins=not saved, report=report), world)
    for found in reversed(saved):
        try:
            restore(trainer, found)
        except ValueError as error:
            if not skip_damaged:
                raise
            report(f"skipped     {found.name}: {error}")
            continue
        break
    else:
        if saved:
            # Not one checkpoint is whole: the run begins again, with the weights it first started from.
            trainer = _trainer(_open(task, config, run, world, begins=True, report=report), world)
    world.check_agreement(step=trainer.steps_done)
    return Session(run, trainer.task, trainer)


CHANGEABLE = {
    *("steps", "evaluate_every", "evaluations", "sample_every", "on_bad_step", "spike"),
    *("checkpoint_every", "keep_last", "keep_best", "async_checkpoints", "copy_to"),
    *("track", "track_project", "track_group", "track_tags"),
    *("device", "compile", "accumulate", "activation_checkpointing"),
}
"""Settings of ``training`` that a resumed run may change: how long, how it is watched and kept, and what it costs."""


def changed_config(saved: Any, wanted: Any, report: Report, first: Any = None) -> Any:
    """``saved`` with what ``wanted`` changes, if a run can continue with it; what changes is reported.

    What ``wanted`` leaves at its default asks for nothing where the task has filled it in, as the shape of a model that
    the run started from. Neither does a setting that cannot be changed so, as the learning rate, where ``wanted`` is as
    ``first``, which the run began with: the configuration file of a run stays good after ``--learning_rate``.

    Raises:
        ValueError: a setting differs that cannot change; names all of them.
    """
    changes = differences(saved, wanted)
    if _same_folder(*changes.get("data.prepared", (None, None))):
        del changes["data.prepared"]
    changeable = {f"training.{name}" for name in CHANGEABLE}
    fixed = [name for name in changes if name not in changeable and not name.startswith("parallel.")]
    changed_since = differences(first, wanted).keys() if first is not None else changes.keys()
    for name in [name for name in fixed if name not in changed_since]:
        now, began = changes.pop(name)
        report(f"kept        {name} at {now!r}, to which it was changed from {began!r} when the run was resumed")
        fixed.remove(name)
    asked = differences(type(wanted)(), wanted)
    for name in [name for name in fixed if name not in asked and _is_filled_in(name, saved)]:
        del changes[name]
        fixed.remove(name)
    if fixed:
        listed = ", ".join(f"{name} is {changes[name][0]!r}, not {changes[name][1]!r}" for name in fixed)
        hint = "; --learning_rate sets another learning rate" if "training.learning_rate" in fixed else ""
        raise ValueError(f"a resumed run keeps its settings: {listed}{hint}")
    for name, (before, after) in changes.items():
        report(f"changed     {name} from {before!r} to {after!r}")
    return with_settings(saved, {name: after for name, (_, after) in changes.items()}) if changes else saved


def _is_filled_in(name: str, config: Any) -> bool:
    """Whether tasks set it themselves, in a run of this configuration."""
    started = getattr(config, "start", None) is not None
    return name in ("model.vocab_size", "data.tokenizer", "data.max_tokens") or (started and name.startswith("model."))


def _same_folder(before: str | None, after: str | None) -> bool:
    """Whether two paths are the same: absolute in the run, perhaps relative where it is given again."""
    return bool(before and after) and Path(before).absolute() == Path(after).absolute()


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


def _open(task: type[Task], config: Any, run: RunFolder, world: World, *, begins: bool, report: Report) -> Task:
    return task.open(config, run.data, begins=begins, verify=world.local_rank == 0, report=report)


def _trainer(task: Task, world: World) -> Trainer:
    settings = json.dumps(to_dict(task.config), sort_keys=True)
    world.check_agreement(configuration=hashlib.sha256(settings.encode()).hexdigest()[:12], **task.fingerprints())
    return Trainer(task, task.config.training, task.config.parallel, world)
