"""``llmfast compare``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from llmfast.training.summary import Summary

UNKNOWN = "–"
WIDEST = 10_000


def compare(runs: tuple[Path, ...], /, *, out: Path | None = None) -> dict[str, Any]:
    """Print runs of any kind side by side: quality, trained parameters, memory, time and speed; returns the JSON.

    Quality is that of the finished run on held-out data; of a run that is not finished, it is the newest validation
    during training, marked with ~, which may be on a part of the data. Results of llmfast eval stand beside it. What
    a run does not have is a dash in the table, and is named below it.

    Args:
        runs: Run folders of llmfast train, classify, sft, dpo and the others that train.
        out: A folder for compare.json (everything that is known, settings and logs included), losses.png (the loss
            curves) and costs.png (quality, parameters, memory and speed).

    Raises:
        ValueError: a folder that is not a run, one that is named twice, or a damaged file.
    """
    from rich.console import Console

    if not runs:
        raise ValueError("there is nothing to compare: name run folders")
    folders = [run.resolve() for run in runs]
    if twice := [str(run) for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]:
        raise ValueError(f"{twice[0]} is named twice: name each run once")
    found = [read_run(run) for run in runs]
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no width: no row is folded.
        console.width = WIDEST
    console.print(comparison(found))
    notes = [*(f"{run.name}: no {each}" for run in found for each in run.missing), *_different_settings(found)]
    for note in notes:
        console.print(note, markup=False)
    content = {"runs": [run.record() for run in found], "notes": notes}
    if out is not None:
        console.print(f"wrote {', '.join(_write(found, content, out))} to {out}", markup=False)
    return content


@dataclass(frozen=True)
class Compared:
    """What is known of one run."""

    name: str
    steps: int
    summary: Summary | None
    """None for a run that was trained before there were summaries."""
    figures: dict[str, float | None]
    is_final: bool
    config: dict[str, Any]
    log: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    """What llmfast eval wrote beside the run, the newest first."""
    missing: list[str] = field(default_factory=list)
    """What could not be found, and why."""

    @property
    def scores(self) -> dict[str, float]:
        """The first figure of each task of llmfast eval, of its newest evaluation."""
        found: dict[str, float] = {}
        for evaluation in self.evaluations:
            for task, result in evaluation["results"].items():
                name, figure = next(iter(result["figures"].items()))
                found.setdefault(f"{task} {name}", figure["value"])
        return found

    def record(self) -> dict[str, Any]:
        """Everything, as JSON."""
        summary = None
        if self.summary is not None:
            derived = ("seconds", "tokens_per_second", "memory")
            summary = asdict(self.summary) | {name: getattr(self.summary, name) for name in derived}
        plain = {
            name: getattr(self, name) for name in ("figures", "is_final", "missing", "evaluations", "config", "log")
        }
        return {"run": self.name, "steps": self.steps, "summary": summary} | plain


def read_run(folder: Path) -> Compared:
    """What is known of the run in ``folder``.

    Raises:
        ValueError: it is not a run, or a file of it is damaged.
    """
    from llmfast import config as config_files
    from llmfast.training.run_folder import RunFolder
    from llmfast.training.summary import SUMMARY_FILE, read_summary

    run = RunFolder(folder)
    if not run.config_file.exists():
        raise ValueError(f"{folder} is not a run folder: it has no {run.config_file.name}")
    summary, log = read_summary(folder), run.records()
    is_final = summary is not None and bool(summary.figures)
    figures = summary.figures if summary is not None and is_final else _logged(log)
    evaluations = evaluations_of(folder)
    missing = []
    if summary is None:
        missing.append(f"parameters, memory, time and speed: there is no {SUMMARY_FILE}")
    elif summary.tokens_per_second is None:
        missing.append("speed: it is measured from the second step on")
    if not any("loss" in record for record in log):
        missing.append(f"loss curve: {run.log_file.name} has no losses")
    if not figures:
        missing.append("quality: it was never validated")
    if not evaluations:
        missing.append("results of llmfast eval")
    return Compared(
        str(folder),
        max((record["step"] for record in log), default=0),
        summary,
        figures,
        is_final,
        config_files.read_yaml(run.config_file),
        log,
        evaluations,
        missing,
    )


def _logged(records: list[dict]) -> dict[str, float | None]:
    """The newest validation figures of a log."""
    prefix = "validation_"
    for record in reversed(records):
        if f"{prefix}loss" in record:
            return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {}


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    """What llmfast eval wrote beside a run or model, the newest first.

    Raises:
        ValueError: a file is damaged.
    """
    files = sorted((folder / "evaluations").glob("*.json"), key=lambda file: -file.stat().st_mtime)
    found = []
    for file in files:
        try:
            content = json.loads(file.read_text("utf-8"))
            values = [each["value"] for result in content["results"].values() for each in result["figures"].values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            values, content = [], {}
        if not values:
            raise ValueError(f"{file} is damaged: it is not what llmfast eval writes")
        found.append(content)
    return found


def _different_settings(runs: list[Compared]) -> list[str]:
    """A sentence for each task that was not measured alike: its figures say nothing about which run is better."""
    notes = []
    asked: dict[str, list[str]] = {}
    for run in runs:
        seen = set()
        for each in run.evaluations:
            for task in set(each["results"]) - seen:
                seen.add(task)
                decided = {name: each.get(name) for name in ("settings", "data", "examples")}
                asked.setdefault(task, []).append(json.dumps(decided, sort_keys=True))
    for task, settings in asked.items():
        if len(set(settings)) > 1:
            notes.append(f"{task} was measured with different settings or data, so that its figures do not compare")
    return notes


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
    tasks = list(dict.fromkeys(name for run in runs for name in run.scores))
    measured = [each.replace("_", " ") for each in (*figures, *tasks)]
    names = ["run", "kind", "steps", *measured, "trained", "of all", "memory", "time", "tokens/s"]
    rows = []
    for run in runs:
        kind = UNKNOWN if run.summary is None else run.summary.command
        quality = [_figure(run, name) for name in figures]
        scores = [f"{run.scores[name]:.4f}" if name in run.scores else UNKNOWN for name in tasks]
        rows.append([run.name, kind, f"{run.steps:,}", *quality, *scores, *_cost(run.summary)])
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


def _write(runs: list[Compared], content: dict[str, Any], out: Path) -> list[str]:
    """Write the files; returns their names."""
    from llmfast.files import atomic_write
    from llmfast.visualization.plots.comparison import plot_bars, plot_run_losses

    atomic_write(out / "compare.json", json.dumps(content, ensure_ascii=False, indent=2, default=str) + "\n")
    logs = {run.name: run.log for run in runs}
    files = ["compare.json", "costs.png"]
    if plot_run_losses(logs, out / "losses.png") != list(logs):
        files.append("losses.png")
    figures = list(dict.fromkeys(name for run in runs for name in run.figures))
    tasks = list(dict.fromkeys(name for run in runs for name in run.scores))
    bars: dict[str, dict[str, float | None]] = {
        name.replace("_", " "): {run.name: run.figures.get(name) for run in runs} for name in figures
    }
    bars |= {name: {run.name: run.scores.get(name) for run in runs} for name in tasks}
    for title, of in (
        ("parameters", lambda summary: summary.parameters),
        ("trained parameters", lambda summary: summary.trained_parameters),
        ("memory, MiB", lambda summary: summary.memory / 2**20),
        ("minutes", lambda summary: summary.seconds / 60),
        ("tokens per second", lambda summary: summary.tokens_per_second),
    ):
        bars[title] = {run.name: None if run.summary is None else of(run.summary) for run in runs}
    plot_bars(bars, out / "costs.png")
    return files
