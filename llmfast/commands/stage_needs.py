"""What a stage of a pipeline needs that no stage before it makes, so that a run does not end for it after hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmfast.pipeline.recipe import Step


def check_stage(step: Step, named: dict[str, Any], out: Path) -> None:
    """Check that the files, libraries and processes that a stage names are there, or are made by an earlier stage, and
    that its datasets can be reached.

    Args:
        step: the stage.
        named: what its command is called with, by name; empty for a script.
        out: the folder of the pipeline: what lies in it is made by stages.

    Raises:
        ValueError: something is missing; the sentence names it.
        ModuleNotFoundError: a library that the command needs is not installed.
    """
    from llmfast.data.available import check_sources
    from llmfast.data.reading.datasets_hub import is_dataset, load_rows
    from llmfast.training.distribution.world import World
    from llmfast.training.preflight.needs import check_needs
    from llmfast.training.sweep import combinations, read_grid

    def is_made(path: Path) -> bool:
        return path.is_relative_to(out)

    config = named.get("config")
    sources = getattr(getattr(config, "data", config), "sources", None) or named.get("sources") or ()
    if hasattr(config, "training"):
        grid = read_grid(named["grid"]) if "grid" in named else {}
        world = World(size=step.processes, local_size=step.processes)
        for _, each in combinations(grid, config):
            check_needs(each, world, will_exist=is_made)
    elif named.get("tasks"):
        _check_tasks(named["tasks"], named["data"])
    else:
        sources = sources or named.get("data") or ()
        check_sources(sources, will_exist=is_made)
    for source in sources:
        if is_dataset(str(source)):
            load_rows(str(source))
    for word, portable in zip(step.words, step.portable, strict=True):
        if "$" in portable:  # a file of this machine, which a script may be given as well
            check_sources([word.partition("=")[2] or word], will_exist=is_made)


def _check_tasks(names: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Check that the libraries of an evaluation's tasks are installed, and that their questions can be read."""
    import importlib

    from llmfast.evaluation.tasks import TEXT, WritingTask, task_named

    for task in (task_named(name) for name in names if name != TEXT):
        if isinstance(task, WritingTask) and task.library:
            importlib.import_module(task.library)
        task.rows(files[0] if files else None)
