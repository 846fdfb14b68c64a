"""``llmfast train`` and ``llmfast sweep``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmfast.training.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from llmfast.training.distribution.world import World
    from llmfast.training.session import Session

AUTO = Path("auto")


def train(
    *,
    config: RunConfig | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    learning_rate: float | None = None,
    profile: bool = False,
    dry_run: bool = False,
    overfit_one_batch: bool = False,
) -> None:
    """Train a model by a configuration, or go on with a run that was stopped. Under torchrun, on all its processes.

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to go on with, exactly where its newest checkpoint is; its own configuration is used. auto:
            go on with --out if it holds a run, from its newest whole checkpoint, else begin it.
        learning_rate: Go on with this peak learning rate instead (with --resume).
        profile: Write a profiler trace of a few steps to profile.json in the run folder.
        dry_run: Only say what would be trained: parameters, memory, time, the first batch as text.
        overfit_one_batch: Only check that the model can learn one batch by heart, in at most training.steps steps.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    from rich.console import Console

    from llmfast.training.preflight.checks import describe_run, overfit
    from llmfast.training.distribution.world import world

    _check_folders(out, resume, learning_rate, trial=dry_run or overfit_one_batch)
    config = config or RunConfig()
    with world(config.training.device) as this:
        console = Console(highlight=False, soft_wrap=True, quiet=not this.is_main)
        if dry_run or overfit_one_batch:
            (describe_run if dry_run else overfit)(config, console=console)
            return
        _fit(_session(config, out, resume, learning_rate, console, this), console, profile)


def sweep(
    grid: Path,
    *,
    config: RunConfig | None = None,
    out: Path = Path("runs/sweep"),
) -> None:
    """Train every combination of the values in a grid, then compare them in a table and plots.

    Started again after an interruption, it goes on where it was.

    Args:
        grid: YAML file: settings, each with a list of values, as in training.learning_rate: [1e-3, 3e-3].
        config: What all the runs have in common.
        out: Folder for the runs, table.txt, results.json, losses.png and one plot a setting.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint of the run under way was saved.
    """
    from rich.console import Console

    from llmfast.training.sweep import read_grid, run_sweep

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a sweep trains in one process: start it without torchrun")

    console = Console(highlight=False, soft_wrap=True)
    run_sweep(read_grid(grid), config or RunConfig(), out, console=console)


def _check_folders(
    out: Path | None, resume: Path | None, learning_rate: float | None, *, trial: bool
) -> None:
    if resume == AUTO and out is None:
        raise ValueError("--resume auto needs --out FOLDER, the run to begin or go on with")
    if trial and (out or resume):
        raise ValueError("--dry_run and --overfit_one_batch write nothing: leave --out and --resume out")
    if not trial and resume != AUTO and (out is None) == (resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to go on with one")
    if learning_rate is not None and resume is None:
        raise ValueError("--learning_rate is for --resume; a new run has --training.learning_rate")


def _session(
    config: RunConfig,
    out: Path | None,
    resume: Path | None,
    learning_rate: float | None,
    console: Console,
    world: World,
) -> Session:
    from llmfast.training.run_folder import Run
    from llmfast.training.session import new_session, resumed_session

    automatic = resume == AUTO
    if automatic:
        resume = out if Run(out).config_file.exists() else None
        world.barrier()  # before the first process makes the folder that the others look for
    if resume is None:
        return new_session(out, config, report=console.print, world=world)
    session = resumed_session(
        resume, learning_rate=learning_rate, skip_damaged=automatic, report=console.print, world=world
    )
    console.print(f"going on    {resume}, from step {session.trainer.steps_done:,}")
    return session


def _fit(session: Session, console: Console, profile: bool) -> None:
    from llmfast.training.loop import fit

    folder, trainer = session.run.folder, session.trainer
    try:
        fit(session, console=console, profile=profile)
    except KeyboardInterrupt:
        again = f"llmfast train --resume {folder}"
        raise KeyboardInterrupt(
            f"stopped at step {trainer.steps_done:,} and saved; go on with: {again}"
        ) from None
    final = trainer.evaluate(session.prepared.validation)
    console.print(f"validation  loss {final.loss:.3f}, {final.bits_per_byte:.3f} bits per byte")
    with contextlib.suppress(OSError):
        _plot(session)
    console.print(f"saved in    {folder}; sample it with: llmfast generate {folder}")


def _plot(session: Session) -> None:
    import math

    from llmfast.visualization.curves import plot_losses

    if not session.trainer.world.is_main:
        return
    shards = session.prepared.train
    per_byte = len(shards) / shards.text_bytes / math.log(2)
    plot_losses(session.run.records(), session.run.loss_plot, nats_to_bits_per_byte=per_byte)
