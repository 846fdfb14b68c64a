"""``llmfast train`` and ``llmfast sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmfast.commands.tasks import TaskName, task_named
from llmfast.training.config import RunConfig


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
    """Train a model by a configuration, or resume a run that was stopped. Under torchrun, on all its processes.

    Args:
        config: What to train, on what, and how.
        out: New folder for the run.
        resume: A run folder to resume exactly at its newest checkpoint; its own configuration is used. auto: resume
            --out if it holds a run, from its newest whole checkpoint, else begin it.
        learning_rate: Resume with this peak learning rate instead (with --resume).
        profile: Write a profiler trace of a few steps to profile.json in the run folder.
        dry_run: Only say what would be trained: parameters, memory, time, the first batch as text.
        overfit_one_batch: Only check that the model can memorize one batch, in at most training.steps steps.

    Raises:
        ValueError: a configuration that cannot be, unreadable data, a damaged run folder.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    from llmfast.commands.running import run_task, try_task
    from llmfast.training.pretraining import Pretraining

    if dry_run or overfit_one_batch:
        try_task(Pretraining, config or RunConfig(), out=out, resume=resume, dry_run=dry_run)
        return
    with run_task(
        Pretraining,
        config or RunConfig(),
        out=out,
        resume=resume,
        learning_rate=learning_rate,
        profile=profile,
    ) as (session, console, final):
        console.print(f"validation  loss {final['loss']:.3f}, {final['bits_per_byte']:.3f} bits per byte")
    folder = session.run.folder
    console.print(f"saved in    {folder}; sample it with: llmfast generate {folder}")


def sweep(
    grid: Path,
    *,
    task: TaskName = "train",
    config: Any = None,
    out: Path = Path("runs/sweep"),
) -> None:
    """Train every combination of the values in a grid, then compare them in a table and plots.

    Started again after an interruption, it continues where it was.

    Args:
        grid: YAML file: settings, each with a list of values, as in training.learning_rate: [1e-3, 3e-3].
        task: What is trained, by its command; the settings are those of that command.
        config: What all the runs have in common.
        out: Folder for the runs, table.txt, results.json, losses.png and one plot per setting.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM, after a checkpoint of the current run was saved.
    """
    from rich.console import Console

    from llmfast.training.sweep import read_grid, run_sweep

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a sweep trains in one process: start it without torchrun")

    console = Console(highlight=False, soft_wrap=True)
    kind = task_named(task)
    run_sweep(read_grid(grid), config or kind.config_class(), out, task=kind, console=console)
