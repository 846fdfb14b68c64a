"""Curves of runs, as data for a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmfast.visualization.curves import RATES, figure_names, series
from llmfast.visualization.smoothing import smoothed

MOST_POINTS = 1000
"""Of each line: a chart is not wider than that."""


def figures_of(logs: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """The figures that any of the logs has: the loss first, learning rates last."""
    records = [record for log in logs.values() for record in log]
    found = figure_names(records, without=set())
    return [name for name in ("loss", *found, *RATES) if any(name in key for record in records for key in record)]


def points_of(logs: Mapping[str, Sequence[dict[str, Any]]], figure: str) -> list[dict[str, Any]]:
    """Points (run, line, step, value) of a figure: of training, smoothed, and of validation."""
    points = []
    for run, records in logs.items():
        for line, key in (("training", figure), ("validation", f"validation_{figure}"), ("final", f"final_{figure}")):
            steps, values = series(list(records), key)
            values = smoothed(values) if line == "training" else values
            every = max(1, len(steps) // MOST_POINTS)
            pairs = list(zip(steps.tolist(), values.tolist(), strict=True))
            kept = pairs[::every] + (pairs[-1:] if (len(pairs) - 1) % every else [])
            points += [{"run": run, "line": line, "step": step, "value": value} for step, value in kept]
    return points
