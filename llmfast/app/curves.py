"""Curves of runs, as data for a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_POINTS = 1000
"""Of each line: a chart is not wider than that."""


def figures_of(logs: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """The figures that any of the logs has: the loss first, then those of objectives and of steps."""
    from llmfast.visualization.curves import STEP_FIGURES, figure_names

    found: dict[str, None] = {}
    for records in logs.values():
        found |= dict.fromkeys(figure_names(list(records), without=set()))
        logged = {name for record in records for name, value in record.items() if isinstance(value, int | float)}
        found |= dict.fromkeys(name for name in STEP_FIGURES if name in logged and name != "step")
    return sorted(found, key=lambda name: (name != "loss", name in STEP_FIGURES))


def points_of(logs: Mapping[str, Sequence[dict[str, Any]]], figure: str) -> list[dict[str, Any]]:
    """Points (run, line, step, value) of a figure: of training, smoothed, and of validation."""
    from llmfast.visualization.curves import series, smoothed

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
