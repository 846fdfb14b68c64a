"""The recipe of a pipeline, a YAML file, and the command lines that it stands for at one size."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfast.config import load

RECIPE_FILE = "pipeline.yaml"
PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.-]*)\}")
ENVIRONMENT = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
NAME = re.compile(r"[A-Za-z_][\w.-]*")
DEFAULT_SIZE = "cpu"


@dataclass(frozen=True)
class Stage:
    """One command line of a recipe.

    Attributes:
        run: The words of an llmfast command, or python FILE and its arguments, split as a shell splits them.
        processes: Start the command under torchrun with so many processes.
    """

    run: str
    processes: int | str = 1


@dataclass(frozen=True)
class Recipe:
    """A pipeline as its YAML file describes it.

    In ``run`` and ``results``, ``{here}`` is the folder of the file, ``{size}`` the name of the size, ``{NAME}`` the
    folder that the stage NAME makes or the value of the variable NAME.

    Attributes:
        stages: The stages by name, in the order in which they run.
        variables: Values that the stages mention; a list becomes several words. $NAME is a variable of the environment.
        sizes: Other values for the variables, by the name of a size.
        minutes: The time that each size takes, by the name of the size.
        results: What results.json gathers, by name; FILE, or FILE:KEY with the path of a value in a JSON file.
    """

    stages: dict[str, Stage]
    variables: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    minutes: dict[str, float] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.stages, *{*self.variables, *(name for size in self.sizes.values() for name in size)}]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a stage or a variable: letters, digits, - and _ can")
            if name in ("here", "size") or names.count(name) > 1:
                raise ValueError(f"{name} has another meaning already: choose another name for the stage or variable")
        if not self.stages:
            raise ValueError("stages is empty: a pipeline has at least one")
        for name in self.minutes:
            if name not in self.sizes:
                raise ValueError(f"minutes.{name} is for a size that is not in sizes")


@dataclass(frozen=True)
class Step:
    """A stage, ready to run."""

    name: str
    folder: Path
    words: list[str]
    """The command with every placeholder filled in."""
    portable: list[str]
    """The same without the folders of this machine: the placeholders of folders, and $NAME, are left as they are."""
    needs: list[str]
    """The stages whose folders the command mentions."""
    processes: int

    @property
    def log(self) -> Path:
        """What the stage printed."""
        return log_of(self.folder)


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


@dataclass(frozen=True)
class Plan:
    """A recipe at one size with an output folder."""

    name: str
    size: str | None
    steps: list[Step]
    variables: dict[str, Any]
    """As the recipe gives them: $NAME is left as it is."""
    results: dict[str, str]
    """Files with their keys, with every placeholder filled in."""


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        ValueError: it is none; the sentence names what is wrong.
        OSError: it cannot be read.
    """
    return load(Recipe, path)


def name_of(path: Path) -> str:
    """What a pipeline is called: its file, or the folder of a file that is called as all recipes are."""
    return path.absolute().parent.name if path.name == RECIPE_FILE else path.stem


def size_of(recipe: Recipe, asked: str | None) -> str | None:
    """The size that was asked for; without one, ``cpu`` or else the first. None for a recipe that has no sizes.

    Raises:
        ValueError: the recipe has no such size.
    """
    if asked is None:
        return DEFAULT_SIZE if DEFAULT_SIZE in recipe.sizes else next(iter(recipe.sizes), None)
    if asked not in recipe.sizes:
        known = ", ".join(recipe.sizes) or "none"
        raise ValueError(f"size {asked!r} is not in the recipe, whose sizes are: {known}")
    return asked


def make_plan(recipe: Recipe, path: Path, out: Path, *, size: str | None, changes: Mapping[str, Any]) -> Plan:
    """What the stages of a recipe run at one size.

    Args:
        recipe: what ``path`` holds.
        path: the YAML file.
        out: the folder under which every stage has its own.
        size: a size of the recipe, or None if it has none.
        changes: other values for variables.

    Raises:
        ValueError: an unknown variable or placeholder, a missing variable of the environment, or a stage that needs a
            later one.
    """
    variables = recipe.variables | (recipe.sizes[size] if size else {})
    for name in changes:
        if name not in variables:
            raise ValueError(f"{name} is not a variable of {path}{_nearest(name, variables)}")
    variables |= changes
    folders = {name: str(out / name) for name in recipe.stages}
    values: dict[str, Any] = {**variables, "here": str(path.parent), **folders, **({"size": size} if size else {})}
    steps: list[Step] = []
    for name, stage in recipe.stages.items():
        try:
            steps.append(_step(name, stage, values, folders, [step.name for step in steps]))
        except ValueError as error:
            raise ValueError(f"{path}: stage {name}: {error}") from None
    results = {}
    for name, source in recipe.results.items():
        try:
            (results[name],) = _filled(source, values)
        except ValueError as error:
            raise ValueError(f"{path}: results.{name}: {error}") from None
    return Plan(name_of(path), size, steps, variables, results)


def _step(name: str, stage: Stage, values: dict[str, Any], folders: dict[str, str], earlier: list[str]) -> Step:
    try:
        words = shlex.split(stage.run)
    except ValueError as error:
        raise ValueError(f"{stage.run!r} cannot be split into words: {error}") from None
    if not words:
        raise ValueError("run is empty: name a command of llmfast")
    mentioned = {found for word in words for found in PLACEHOLDER.findall(word)}
    needs = [each for each in folders if each in mentioned and each != name]
    for each in needs:
        if each not in earlier:
            raise ValueError(f"it needs {each}, which comes after it")
    # A key of the cache is the same for every output folder, and wherever the recipe lies.
    as_they_are = {each: f"{{{each}}}" for each in ("here", *folders)}
    return Step(
        name=name,
        folder=Path(folders[name]),
        words=[each for word in words for each in _filled(word, values)],
        portable=[each for word in words for each in _filled(word, values | as_they_are, expand=False)],
        needs=needs,
        processes=_processes(stage.processes, values),
    )


def _processes(given: int | str, values: dict[str, Any]) -> int:
    (text,) = _filled(str(given), values)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"processes must be a number of at least 1, got {text!r}")
    return int(text)


def _filled(word: str, values: dict[str, Any], *, expand: bool = True) -> list[str]:
    """A word with values in place of its placeholders; several where it is one placeholder of a list."""
    alone = PLACEHOLDER.fullmatch(word)
    if alone and isinstance(values.get(alone[1]), list):
        return [_text(alone[1], each, values, expand) for each in values[alone[1]]]

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in values:
            raise ValueError(f"{{{name}}} is neither a stage nor a variable{_nearest(name, values)}")
        return _text(name, values[name], values, expand)

    return [PLACEHOLDER.sub(value, word)]


def _text(name: str, value: Any, values: dict[str, Any], expand: bool) -> str:
    """A value as a word of a command line, or a part of one; ``{here}`` in it is filled in as well."""
    if isinstance(value, list | dict) or value is None:
        raise ValueError(f"variable {name} is {value!r}: a list stands as a word of its own, and nothing else nests")
    if not isinstance(value, str) or not expand:
        return str(value)

    def of_environment(found: re.Match[str]) -> str:
        wanted = found[1] or found[2]
        if wanted not in os.environ:
            raise ValueError(f"variable {name} is {value}: set {wanted} in the environment, or give --set {name}=...")
        return os.environ[wanted]

    return ENVIRONMENT.sub(of_environment, value.replace("{here}", values["here"]))


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known) or 'none'}"
