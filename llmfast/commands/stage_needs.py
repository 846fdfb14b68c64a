"""What a stage of a pipeline needs that no stage before it makes, so that a run does not end for it after hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmfast.pipeline.recipe import Step


def check_stage(step: Step, named: dict[str, Any], out: Path) -> None:
    """Check that the files, libraries and processes that a stage names are there, or are made by an earlier stage.

    Args:
        step: the stage.
        named: what its command is called with, by name; empty for a script.
        out: the folder of the pipeline: what lies in it is made by stages.

    Raises:
        ValueError: something is missing; the sentence names it.
        ModuleNotFoundError: a library that the command needs is not installed.
    """
    from llmfast.data.available import check_sources
    from llmfast.training.distribution.world import World
    from llmfast.training.preflight.needs import check_needs
    from llmfast.training.sweep import combinations, read_grid

    def is_made(path: Path) -> bool:
        return path.is_relative_to(out)

    config = named.get("config")
    if hasattr(config, "training"):
        grid = read_grid(named["grid"]) if "grid" in named else {}
        world = World(size=step.processes, local_size=step.processes)
        for _, each in combinations(grid, config):
            check_needs(each, world, will_exist=is_made)
    elif hasattr(config, "sources"):
        check_sources(config.sources, will_exist=is_made)
    elif "data" in named or "sources" in named:
        check_sources(named.get("data") or named.get("sources") or (), will_exist=is_made)
    if named.get("tasks"):
        _check_tasks(named["tasks"], has_file=bool(named["data"]))
    for word, portable in zip(step.words, step.portable, strict=True):
        if "$" in portable:  # a file of this machine, which a script may be given as well
            check_sources([word.partition("=")[2] or word], will_exist=is_made)


def _check_tasks(names: tuple[str, ...], *, has_file: bool) -> None:
    """Check the libraries of the tasks of an evaluation."""
    import importlib

    from llmfast.evaluation.tasks import TEXT, WritingTask, task_named

    for task in (task_named(name) for name in names if name != TEXT):
        if isinstance(task, WritingTask) and task.library:
            importlib.import_module(task.library)
        if not has_file:
            importlib.import_module("datasets")
