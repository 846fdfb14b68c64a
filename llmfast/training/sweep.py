"""Runs over a grid of settings, and what they show side by side."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from llmfast.config import differences, from_dict, load, read_yaml, save, to_dict
from llmfast.data.prepare import prepare
from llmfast.files import atomic_write
from llmfast.training.config import RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit
from llmfast.training.monitoring.guard import BadStepError
from llmfast.training.preflight.needs import check_needs
from llmfast.training.pretraining import Pretraining
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import new_session, resumed_session
from llmfast.training.summary import add_figures
from llmfast.training.task import Task
from llmfast.visualization.curves import plot_sweep

Grid = dict[str, list[Any] | dict[str, dict[str, Any]]]
"""Settings, each with a list of values; or a name of the grid's own, with the settings that each of its named choices
changes together."""
Config = TypeVar("Config")


@dataclass(frozen=True)
class SweepResult:
    """The result of one combination of settings."""

    folder: str
    settings: dict[str, Any]
    parameters: int
    trained_parameters: int
    flops_per_token: float
    """Of a training step, as ``Task.flops_per_token`` counts them."""
    steps: int
    figures: dict[str, float] | None
    """On the whole validation split, the loss among them; None for a run that diverged."""

    @property
    def loss(self) -> float | None:
        return None if self.figures is None else self.figures["loss"]

    def record(self) -> dict[str, Any]:
        """As JSON holds it: the figures beside the rest."""
        record = asdict(self)
        return record | (record.pop("figures") or {"loss": None})

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SweepResult:
        """The inverse of ``record``."""
        own = {field.name: record.pop(field.name) for field in dataclasses.fields(cls) if field.name != "figures"}
        return cls(**own, figures=None if record["loss"] is None else record)


def read_grid(path: Path) -> Grid:
    """A grid from a YAML file of settings, each with a list of values, or of names with choices of several settings.

    Raises:
        ValueError: it is anything else.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not tree or not all(map(_are_values, tree.values())):
        raise ValueError(
            f"{path} is not a grid: settings with lists of values, as training.learning_rate: [1e-3, 3e-3], or a name "
            "with choices of several settings, as size: {small: {model.width: 64}, big: {model.width: 128}}"
        )
    return tree


def _are_values(values: Any) -> bool:
    if isinstance(values, dict):
        return bool(values) and all(isinstance(each, dict) for each in values.values())
    return isinstance(values, list) and bool(values)


def combinations(grid: Grid, config: Config) -> list[tuple[dict[str, Any], Config]]:
    """Every combination of values (or the names of choices), with the configuration it makes.

    Raises:
        ValueError: a setting that does not exist or is set twice, or a value that cannot be.
    """
    axes = [_choices(name, values) for name, values in grid.items()]
    found = []
    for chosen in itertools.product(*axes):
        changes: dict[str, Any] = {}
        for _, settings in chosen:
            if twice := sorted(changes.keys() & settings.keys()):
                raise ValueError(f"the grid sets {', '.join(twice)} twice, in different choices")
            changes |= settings
        names = dict(zip(grid, (name for name, _ in chosen), strict=True))
        found.append((names, with_settings(config, changes)))
    return found


def _choices(name: str, values: list[Any] | dict[str, dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    """What is shown of each choice, and the settings that it makes."""
    return list(values.items()) if isinstance(values, dict) else [(value, {name: value}) for value in values]


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with settings changed by name (``model.width``); what is derived from them follows.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be.
    """
    tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        tree[field.name] = to_dict(_underived(value) if dataclasses.is_dataclass(value) else value)
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        place = tree
        for step in filter(None, section.split(".")):
            place = place.setdefault(step, {})
        place[key] = value
    return from_dict(type(config), tree)


def _underived(section: Any) -> Any:
    """A section of the configuration with None where its class would derive the same value from other settings."""
    derived = [
        field.name
        for field in dataclasses.fields(section)
        if field.default is None and dataclasses.replace(section, **{field.name: None}) == section
    ]
    bare = copy.copy(section)
    for name in derived:
        object.__setattr__(bare, name, None)
    return bare


def run_sweep(
    grid: Grid, config: Any, out: Path, *, task: type[Task] = Pretraining, console: Console
) -> list[SweepResult]:
    """Train every combination under ``out`` (those done already are kept), then write the table and the plots.

    Args:
        grid: settings with lists of values, or names with choices.
        config: what all runs have in common, of the class that ``task`` has.
        out: the folder.
        task: what is trained.
        console: where to print.

    Raises:
        ValueError: a setting that does not exist, a value that cannot be, or what ``check_needs`` refuses; nothing is
            trained then.
        ModuleNotFoundError: a library that a run needs is not installed; nothing is trained then.
        KeyboardInterrupt: stopped; the same call resumes.
    """
    runs = combinations(grid, config)
    for _, each in runs:
        check_needs(each, World())
    _check_same_sweep(config, out)
    if isinstance(config, RunConfig) and not config.data.prepared:
        _prepare_once([each for _, each in runs], config, out / "data", console)
    results = []
    for number, (settings, each) in enumerate(runs, 1):
        console.print(f"\nrun {number} of {len(runs)}: {_words(settings)}")
        results.append(_one(out / "runs" / _folder_name(settings), settings, each, task, console))
    ranked = sorted(results, key=lambda result: math.inf if result.loss is None else result.loss)
    _present(ranked, grid, out, console)
    logs = {_words(result.settings): RunFolder(Path(result.folder)).records() for result in ranked}
    losses = [(result.settings, result.loss) for result in results if result.loss is not None]
    plots = plot_sweep(logs, losses, out)
    console.print(f"\nsaved in    {out}: table.txt, results.json, {', '.join(plot.name for plot in plots)}")
    return ranked


def _check_same_sweep(config: Any, out: Path) -> None:
    """Check that what is under ``out`` has this in common with the sweep, and note it there for the next time.

    Raises:
        ValueError: it has other settings; names them.
    """
    file = out / "common.yaml"
    if file.exists():
        before = load(type(config), file)
        if differing := differences(before, config):
            listed = ", ".join(f"{name} is {was!r}, not {now!r}" for name, (was, now) in differing.items())
            raise ValueError(f"{out} holds a sweep of other settings: {listed}; choose another --out")
    else:
        save(config, file)


def _prepare_once(configs: list[RunConfig], config: RunConfig, data: Path, console: Console) -> None:
    """Pretraining data are large: all runs read the same."""
    if not data.exists():
        prepare(config.data, data, report=console.print)
    for each in configs:
        each.data.prepared = str(data)


def _one(folder: Path, settings: dict[str, Any], config: Any, task: type[Task], console: Console) -> SweepResult:
    file = folder / "result.json"
    if file.exists():
        return SweepResult.from_record(json.loads(file.read_text()))
    if RunFolder(folder).config_file.exists():
        session = resumed_session(folder, task=task)
    else:
        session = new_session(folder, config, task=task, report=lambda line: None)
    try:
        fit(session, console=console)
        final = session.trainer.evaluate()
    except BadStepError as error:  # where learning rates are compared, one may be too high
        console.print(f"ended: {error}", markup=False)
        final = None
    else:
        add_figures(folder, final)
    result = SweepResult(
        folder=str(folder),
        settings=settings,
        parameters=session.trainer.parameters.all,
        trained_parameters=session.trainer.parameters.trained,
        flops_per_token=session.task.flops_per_token(),
        steps=session.trainer.steps_done,
        figures=final if final is not None and math.isfinite(final["loss"]) else None,
    )
    atomic_write(file, json.dumps(result.record(), indent=2) + "\n")
    return result


def _present(results: Sequence[SweepResult], grid: Grid, out: Path, console: Console) -> None:
    names = list(dict.fromkeys(name for result in results for name in result.figures or {}))
    shown = [name.replace("_", " ") for name in names]
    table = Table(*grid, "parameters", "trained", "steps", *shown, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for result in results:
        counts = (f"{count:,}" for count in (result.parameters, result.trained_parameters, result.steps))
        figures = ("diverged" if result.figures is None else f"{result.figures[name]:.4f}" for name in names)
        table.add_row(*map(str, result.settings.values()), *counts, *figures)
    console.print()
    console.print(table)
    with open(out / "table.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=200).print(table)
    atomic_write(out / "results.json", json.dumps([result.record() for result in results], indent=2) + "\n")


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())


def _folder_name(settings: dict[str, Any]) -> str:
    return "-".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()).replace("/", "_")
