"""What the commands that train have in common: their options, a run begun or resumed, trained, and its curve drawn."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmfast.commands.tasks import TaskName, task_named
from llmfast.remote import upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from llmfast.training.distribution.world import World
    from llmfast.training.session import Session
    from llmfast.training.task import Task

AUTO = Path("auto")


class Finished(NamedTuple):
    """A run that has been trained."""

    session: Session
    console: Console
    figures: dict[str, float]
    """Of the whole validation split."""

    @property
    def folder(self) -> Path:
        return self.session.run.folder

    def report_answers(self) -> None:
        """Say how well the answers of a model are predicted, and where it is."""
        loss, perplexity = self.figures["loss"], self.figures["perplexity"]
        self.console.print(f"validation  loss {loss:.3f} on answers, perplexity {perplexity:.2f}")
        self.report_chat()

    def report_chat(self) -> None:
        """Say where a model is that answers."""
        self.console.print(f"saved in    {self.folder}; talk to it with: llmfast chat {self.folder}")


class TrainingCommand(Protocol):
    """A command that trains. All of them have these options, and ``config`` decides the rest."""

    def __call__(
        self,
        *,
        config: Any = None,
        out: Path | None = None,
        resume: Path | None = None,
        learning_rate: float | None = None,
        profile: bool = False,
        dry_run: bool = False,
        overfit_one_batch: bool = False,
    ) -> None: ...


OPTIONS = """
Args:
    config: What to train, on what, and how.
    out: New folder for the run.
    resume: A run folder to resume exactly at its newest checkpoint. Its own configuration is used; options and
        --config may change how long it trains and how it is watched and saved, and other settings are refused. auto:
        resume --out if it holds a run, from its newest whole checkpoint, else begin it.
    learning_rate: Resume with this peak learning rate instead (with --resume).
    profile: Write a profiler trace of a few steps to profile.json in the run folder.
    dry_run: Only say what would be trained: parameters, memory, time, and the first batch as text, with what is
        trained in color where that is a part of it.
    overfit_one_batch: Only check that the model can memorize one batch, in at most training.steps steps.

Raises:
    ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
    KeyboardInterrupt: stopped by SIGINT, SIGTERM or SIGHUP, after a checkpoint was saved.
"""


def training_command(task: TaskName, config_class: type) -> Callable[[Callable[[Finished], None]], TrainingCommand]:
    """Make the command of a task from a function that is called with each run that has been trained, and says so.

    The function's name and docstring are those of the command; the options of ``TrainingCommand`` are added to both.
    """

    def decorate(finish: Callable[[Finished], None]) -> TrainingCommand:
        def command(
            *,
            config: Any = None,
            out: Path | None = None,
            resume: Path | None = None,
            learning_rate: float | None = None,
            profile: bool = False,
            dry_run: bool = False,
            overfit_one_batch: bool = False,
        ) -> None:
            kind = task_named(task)
            if config is None and not resume:
                config = config_class()
            if dry_run or overfit_one_batch:
                try_task(kind, config, out=out, resume=resume, dry_run=dry_run)
                return
            with run_task(
                kind, config, out=out, resume=resume, learning_rate=learning_rate, profile=profile
            ) as finished:
                finish(finished)

        command.__name__, command.__qualname__, command.__module__ = task, task, finish.__module__
        command.__doc__ = f"{finish.__doc__.rstrip()}\n{textwrap.indent(OPTIONS, '    ')}"
        command.__annotations__["config"] = config_class | None
        return command

    return decorate


@contextlib.contextmanager
def run_task(
    task: type[Task],
    config: Any,
    *,
    out: Path | None,
    resume: Path | None,
    learning_rate: float | None = None,
    profile: bool = False,
) -> Iterator[Finished]:
    """Train ``task`` in a new run or a resumed one, on all processes, and evaluate it; yields what came of it.

    Args:
        task: what is trained.
        config: the configuration of a new run, or what that of a resumed one shall be from here on; None leaves it.
        out: new folder for the run.
        resume: a run folder to resume; ``AUTO`` resumes ``out`` if it holds a run.
        learning_rate: a new peak learning rate for a resumed run.
        profile: write a profiler trace of a few steps.

    Raises:
        ValueError: folders that make no sense together, or what the task refuses.
        KeyboardInterrupt: stopped by SIGINT, SIGTERM or SIGHUP, after a checkpoint was saved.
    """
    from rich.console import Console

    from llmfast.training.distribution.world import world
    from llmfast.training.loop import fit
    from llmfast.training.summary import add_figures

    _check_folders(out, resume, learning_rate)
    device = config.training.device if config is not None else "auto"
    with world(device, minutes=10.0 if config is None else config.parallel.timeout) as this:
        console = Console(highlight=False, soft_wrap=True, quiet=not this.is_main)
        session = _session(task, config, out, resume, learning_rate, console, this)
        with _copied_at_the_end(session, console):
            try:
                fit(session, console=console, profile=profile)
            except KeyboardInterrupt:
                again = f"llmfast {task.command} --resume {session.run.folder}"
                raise KeyboardInterrupt(
                    f"stopped at step {session.trainer.steps_done:,} and saved; resume with: {again}"
                ) from None
            figures = session.trainer.evaluate()
            if this.is_main:
                add_figures(session.run.folder, figures)
            yield Finished(session, console, figures)
            # A full disk costs the picture, not the run.
            with contextlib.suppress(OSError):
                _plot(session)


@contextlib.contextmanager
def _copied_at_the_end(session: Session, console: Console) -> Iterator[None]:
    """Copies the run to ``training.copy_to`` however training ends. If it was stopped or failed, that is the error, and
    a copy that fails as well is only reported."""
    try:
        yield
    except BaseException:
        try:
            _copy(session)
        except ValueError as failure:
            console.print(f"not copied  {failure}")
        raise
    _copy(session)


def _copy(session: Session) -> None:
    if (address := session.config.training.copy_to) and session.trainer.world.is_main:
        upload(session.run.folder, address)


def try_task(task: type[Task], config: Any, *, out: Path | None, resume: Path | None, dry_run: bool) -> None:
    """Only say what a run would be (``dry_run``), or check that its model can memorize one batch.

    Raises:
        ValueError: a folder to write, or what the task refuses.
    """
    from rich.console import Console

    from llmfast.training.distribution.world import world
    from llmfast.training.preflight.checks import describe_run, overfit

    if out or resume:
        raise ValueError("--dry_run and --overfit_one_batch write nothing: leave --out and --resume out")
    with world(config.training.device, minutes=config.parallel.timeout) as this:
        console = Console(highlight=False, soft_wrap=True, quiet=not this.is_main)
        (describe_run if dry_run else overfit)(config, task=task, console=console, world=this)


def _check_folders(out: Path | None, resume: Path | None, learning_rate: float | None) -> None:
    if resume == AUTO and out is None:
        raise ValueError("--resume auto needs --out FOLDER, the run to begin or resume")
    if resume != AUTO and (out is None) == (resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to resume one")
    if learning_rate is not None and resume is None:
        raise ValueError("--learning_rate is for --resume; a new run has --training.learning_rate")


def _session(
    task: type[Task],
    config: Any,
    out: Path | None,
    resume: Path | None,
    learning_rate: float | None,
    console: Console,
    world: World,
) -> Session:
    from llmfast.training.run_folder import RunFolder
    from llmfast.training.session import new_session, resumed_session

    automatic = resume == AUTO
    if automatic:
        resume = out if RunFolder(out).config_file.exists() else None
        # The first process makes the folder that the others look for: all must have looked before.
        world.barrier()
    if resume is None:
        return new_session(out, config or task.config_class(), task=task, report=console.print, world=world)
    session = resumed_session(
        resume,
        task=task,
        config=config,
        learning_rate=learning_rate,
        skip_damaged=automatic,
        report=console.print,
        world=world,
    )
    console.print(f"resuming    {resume}, from step {session.trainer.steps_done:,}")
    return session


def _plot(session: Session) -> None:
    from llmfast.visualization.curves import plot_losses

    if session.trainer.world.is_main:
        plot_losses(session.run.records(), session.run.loss_plot, units=session.task.units(1.0))
