"""``llmfast compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from llmfast.training.summary import Summary

UNKNOWN = "–"
WIDEST = 10_000


def compare(runs: tuple[Path, ...], /) -> None:
    """Print runs of any kind side by side: quality, trained parameters, memory, time and speed.

    Quality is that of the finished run on held-out data; of a run that is not finished, it is the newest validation
    during training, marked with ~, which may be on a part of the data.

    Args:
        runs: Run folders of llmfast train, classify, sft and quickstart.

    Raises:
        ValueError: a folder that is not a run, or a damaged file.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no width: no row is folded.
        console.width = WIDEST
    console.print(comparison([read_run(run) for run in runs]))


@dataclass(frozen=True)
class Compared:
    """What is known of one run."""

    name: str
    steps: int
    summary: Summary | None
    """None for a run that was trained before there were summaries."""
    figures: dict[str, float | None]
    is_final: bool


def read_run(folder: Path) -> Compared:
    """What is known of the run in ``folder``.

    Raises:
        ValueError: it is not a run, or its summary is damaged.
    """
    from llmfast.training.run_folder import RunFolder
    from llmfast.training.summary import read_summary

    run = RunFolder(folder)
    if not run.config_file.exists():
        raise ValueError(f"{folder} is not a run folder: it has no {run.config_file.name}")
    summary, records = read_summary(folder), run.records()
    steps = max((record["step"] for record in records), default=0)
    if summary is not None and summary.figures:
        return Compared(str(folder), steps, summary, summary.figures, is_final=True)
    return Compared(str(folder), steps, summary, _logged(records), is_final=False)


def _logged(records: list[dict]) -> dict[str, float | None]:
    """The newest validation figures of a log."""
    prefix = "validation_"
    for record in reversed(records):
        if f"{prefix}loss" in record:
            return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {}


def comparison(runs: list[Compared]) -> Table:
    """The table: a row per run, a column for each figure that any of them has."""
    from rich.table import Table
    from rich.text import Text

    names, rows = cells(runs)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(names[0], overflow="fold")
    table.add_column(names[1])
    for name in names[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    for run, *others in rows:
        table.add_row(Text(run), *others)
    return table


def cells(runs: list[Compared]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and a row per run with a text for each."""
    figures = list(dict.fromkeys(name for run in runs for name in run.figures))
    shown = [each.replace("_", " ") for each in figures]
    names = ["run", "kind", "steps", *shown, "trained", "of all", "memory", "time", "tokens/s"]
    rows = []
    for run in runs:
        kind = UNKNOWN if run.summary is None else run.summary.command
        rows.append([run.name, kind, f"{run.steps:,}", *(_figure(run, name) for name in figures), *_cost(run.summary)])
    return names, rows


def _figure(run: Compared, name: str) -> str:
    if name not in run.figures:
        return UNKNOWN
    value = run.figures[name]
    return "none" if value is None else f"{'' if run.is_final else '~'}{value:.4f}"


def _cost(summary: Summary | None) -> list[str]:
    from llmfast.training.monitoring.display import clock, size

    if summary is None:
        return [UNKNOWN] * 5
    speed = summary.tokens_per_second
    return [
        f"{summary.trained_parameters:,}",
        f"{summary.trained_parameters / summary.parameters:.2%}",
        size(summary.memory),
        clock(summary.seconds),
        UNKNOWN if speed is None else f"{speed:,.0f}",
    ]
