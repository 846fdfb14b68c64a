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
from typing import Any

from rich.console import Console
from rich.table import Table

from llmfast.config import from_dict, read_yaml, to_dict
from llmfast.data.prepare import prepare
from llmfast.files import atomic_write
from llmfast.training.config import RunConfig
from llmfast.training.loop import fit
from llmfast.training.monitoring.guard import BadStepError
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import new_session, resumed_session
from llmfast.visualization.curves import plot_sweep

Grid = dict[str, list[Any]]


@dataclass(frozen=True)
class SweepResult:
    """The result of one combination of settings."""

    folder: str
    settings: dict[str, Any]
    parameters: int
    tokens: int
    loss: float | None
    """On the whole validation split, nats per token; None for a run that diverged."""
    bits_per_byte: float | None


def read_grid(path: Path) -> Grid:
    """A grid from a YAML file of settings, each with a list of values.

    Raises:
        ValueError: it is anything else.
    """
    tree = read_yaml(path)
    if not tree or not all(isinstance(values, list) and values for values in tree.values()):
        raise ValueError(
            f"{path} is not a grid: settings with lists of values, as training.learning_rate: [1e-3, 3e-3]"
        )
    return tree


def combinations(grid: Grid, config: RunConfig) -> list[tuple[dict[str, Any], RunConfig]]:
    """Every combination of values, with the configuration it makes.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be.
    """
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        found.append((settings, with_settings(config, settings)))
    return found


def with_settings(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """``config`` with settings changed by name (``model.width``); what is derived from them follows.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be.
    """
    tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        tree[field.name] = to_dict(_underived(value)) if dataclasses.is_dataclass(value) else value
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        place = tree
        for step in filter(None, section.split(".")):
            place = place.setdefault(step, {})
        place[key] = value
    return from_dict(RunConfig, tree)


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


def run_sweep(grid: Grid, config: RunConfig, out: Path, *, console: Console) -> list[SweepResult]:
    """Train every combination under ``out`` (those done already are kept), then write the table and the plots.

    Raises:
        ValueError: a setting that does not exist, or a value that cannot be; nothing is trained then.
        KeyboardInterrupt: stopped; the same call resumes.
    """
    runs = combinations(grid, config)
    data = out / "data"
    if not config.data.prepared:
        if not data.exists():
            prepare(config.data, data, report=console.print)
        for _, each in runs:
            each.data.prepared = str(data)
    results = []
    for number, (settings, each) in enumerate(runs, 1):
        console.print(f"\nrun {number} of {len(runs)}: {_words(settings)}")
        results.append(_one(out / "runs" / _folder_name(settings), settings, each, console))
    results.sort(key=lambda result: math.inf if result.loss is None else result.loss)
    _present(results, grid, out, console)
    return results


def _one(folder: Path, settings: dict[str, Any], config: RunConfig, console: Console) -> SweepResult:
    file = folder / "result.json"
    if file.exists():
        return SweepResult(**json.loads(file.read_text()))
    if RunFolder(folder).config_file.exists():
        session = resumed_session(folder)
    else:
        session = new_session(folder, config, report=lambda line: None)
    try:
        fit(session, console=console)
        final = session.trainer.evaluate()
    except BadStepError as error:  # where learning rates are compared, one may be too high
        console.print(f"ended: {error}", markup=False)
        final = None
    known = final is not None and math.isfinite(final["loss"])
    result = SweepResult(
        folder=str(folder),
        settings=settings,
        parameters=session.config.model.parameters,
        tokens=session.trainer.source.state()["position"] * session.task.context,
        loss=final["loss"] if known else None,
        bits_per_byte=final["bits_per_byte"] if known else None,
    )
    atomic_write(file, json.dumps(asdict(result), indent=2) + "\n")
    return result


def _present(results: Sequence[SweepResult], grid: Grid, out: Path, console: Console) -> None:
    table = Table(*grid, "parameters", "tokens", "loss", "bits per byte", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for result in results:
        figures = (
            f"{result.parameters:,}",
            f"{result.tokens:,}",
            *("diverged" if each is None else f"{each:.4f}" for each in (result.loss, result.bits_per_byte)),
        )
        table.add_row(*map(str, result.settings.values()), *figures)
    console.print()
    console.print(table)
    with open(out / "table.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=200).print(table)
    atomic_write(out / "results.json", json.dumps([asdict(result) for result in results], indent=2) + "\n")
    logs = {_words(result.settings): RunFolder(Path(result.folder)).records() for result in results}
    plots = plot_sweep(logs, [(result.settings, result.loss) for result in results if result.loss is not None], out)
    console.print(f"\nsaved in    {out}: table.txt, results.json, {', '.join(plot.name for plot in plots)}")


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())


def _folder_name(settings: dict[str, Any]) -> str:
    return "-".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()).replace("/", "_")
