"""``llmfast train`` and ``llmfast sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmfast.commands.running import Finished, training_command
from llmfast.commands.tasks import TaskName, task_named
from llmfast.training.config import RunConfig


@training_command("train", RunConfig)
def train(finished: Finished) -> None:
    """Train a model by a configuration, or resume a run that was stopped. Under torchrun, on all its processes."""
    console, figures, folder = finished.console, finished.figures, finished.folder
    console.print(f"validation  loss {figures['loss']:.3f}, {figures['bits_per_byte']:.3f} bits per byte")
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
        grid: YAML file: settings, each with a list of values, as in training.learning_rate: [1e-3, 3e-3]; or a name of
            your own with choices of several settings, as in size: {small: {model.width: 64}, big: {model.width: 128}}.
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
