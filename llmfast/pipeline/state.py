"""What is done of a pipeline, in ``OUT/pipeline.json``, and why a stage has to run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmfast.config import from_dict
from llmfast.files import atomic_write, json_sha256
from llmfast.pipeline.inputs import dependencies
from llmfast.pipeline.recipe import Plan, Step, log_of

STATE_FILE = "pipeline.json"
INTERRUPTED = "interrupted"


@dataclass
class Record:
    """A stage that was begun.

    Attributes:
        depends_on: What it depended on.
        is_done: Whether its command has ended, without an error.
        has_folder: Whether it left a folder.
        seconds: The time that it took, in all its attempts.
        processor_seconds: The time that its processes computed, which others on the machine do not change.
    """

    depends_on: dict[str, Any]
    is_done: bool = False
    has_folder: bool = False
    seconds: float = 0.0
    processor_seconds: float = 0.0


@dataclass
class State:
    """The stages that were begun in an output folder, by name.

    Attributes:
        pipeline: The name of the pipeline.
        stages: Its stages.
    """

    pipeline: str
    stages: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A stage with what is to be done about it."""

    step: Step
    depends_on: dict[str, Any]
    reason: str
    """Why it runs; empty for a stage that is done."""

    @property
    def is_interrupted(self) -> bool:
        """What it has made so far still counts."""
        return self.reason == INTERRUPTED


def read_state(out: Path, pipeline: str) -> State:
    """What is done under ``out``.

    Raises:
        ValueError: the file is damaged, or of another pipeline.
    """
    file = out / STATE_FILE
    if not file.exists():
        return State(pipeline)
    try:
        state = from_dict(State, json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if state.pipeline != pipeline:
        raise ValueError(f"{out} holds the pipeline {state.pipeline}, not {pipeline}: choose another --out")
    return state


def write_state(out: Path, state: State) -> None:
    """Write down what is done under ``out``."""
    atomic_write(out / STATE_FILE, json.dumps(asdict(state), indent=2) + "\n")


def tasks(plan: Plan, state: State, again: tuple[str, ...] = ()) -> list[Task]:
    """Every stage of a plan with what is to be done about it.

    Args:
        plan: the stages.
        state: what is done of them.
        again: stages that are to run again with all that depend on them, though they are done.

    Raises:
        ValueError: a folder that a stage is to make was made by something else.
    """
    found: list[Task] = []
    keys: dict[str, str] = {}
    asked = set(again)
    for step in plan.steps:
        if asked & set(step.needs):
            asked.add(step.name)
        depends_on = dependencies(step, keys)
        keys[step.name] = json_sha256(depends_on)
        record = state.stages.get(step.name)
        if record is None and step.folder.exists():
            raise ValueError(f"{step.folder} was not made by this pipeline: remove it, or choose another --out")
        reason = "asked for" if step.name in asked else _reason(step, record, depends_on)
        found.append(Task(step, depends_on, reason))
    return found


def _reason(step: Step, record: Record | None, now: dict[str, Any]) -> str:
    if record is None:
        return "new"
    if changes := _changes(record.depends_on, now):
        return f"changed: {', '.join(changes)}"
    if not record.is_done:
        return INTERRUPTED
    if record.has_folder and not step.folder.exists():
        return "its folder is gone"
    return "" if step.log.exists() else "its log is gone"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a stage depends on that is different now, in words."""
    changed = []
    for name in now:
        was, this = before.get(name), now[name]
        if was != this and isinstance(this, dict) and isinstance(was, dict):
            differing = [each for each in {**was, **this} if was.get(each) != this.get(each)]
            changed += [f"stage {each}" if name == "stages" else each for each in differing]
        elif was != this:
            changed.append(name if isinstance(this, list) else f"{name} {was} → {this}")
    return changed


def remove(folder: Path) -> None:
    """Remove what a stage has made."""
    if folder.exists():
        shutil.rmtree(folder)
    log_of(folder).unlink(missing_ok=True)
