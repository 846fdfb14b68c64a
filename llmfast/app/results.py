"""Result files as rows of tables: evaluations beside the runs they are of, and benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.commands.compare import evaluations_of
from llmfast.training.summary import read_summary


@dataclass(frozen=True)
class Evaluation:
    """One figure of one evaluation, beside what the run cost."""

    model: str
    task: str
    figure: str
    value: float
    stderr: float | None
    questions: int | None
    parameters: int | None
    memory: int | None
    """Peak bytes while it was trained."""


def read_evaluations(path: Path, name: str) -> list[Evaluation]:
    """The figures that ``llmfast eval`` wrote beside a run or model, which is called ``name``.

    Raises:
        ValueError: a file is damaged; names it.
    """
    summary = read_summary(path)
    parameters, memory = (None, None) if summary is None else (summary.parameters, summary.memory)
    return [
        Evaluation(name, task, key, figure["value"], figure.get("stderr"), result.get("questions"), parameters, memory)
        for content in evaluations_of(path)
        for task, result in content["results"].items()
        for key, figure in result["figures"].items()
    ]


@dataclass(frozen=True)
class Measurement:
    """One contender on one case of a benchmark."""

    case: str
    contender: str
    status: str
    seconds: float | None
    """Median of a call."""
    best: float | None
    """How many times as long as the fastest contender that is right."""
    note: str


def read_benchmark(file: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """What was measured on what machine, and the rows.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = content["results"]
        fastest: dict[str, float] = {}
        for row in rows:
            if row["status"] == "ok" and row["median_s"]:
                case = _case(row)
                fastest[case] = min(fastest.get(case, row["median_s"]), row["median_s"])
        return content["machine"], [_measurement(row, fastest) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from None


def _case(row: dict[str, Any]) -> str:
    shape = " ".join(f"{name}={size}" for name, size in row["shape"].items())
    dtype = "" if row["dtype"] == "text" else row["dtype"]
    return " ".join(filter(None, [row["op"], shape, dtype])) + f", {row['pass']}"


def _measurement(row: dict[str, Any], fastest: dict[str, float]) -> Measurement:
    case, seconds = _case(row), row["median_s"]
    ratio = seconds / fastest[case] if seconds and case in fastest else None
    return Measurement(case, row["contender"], row["status"], seconds, ratio, row["note"])
