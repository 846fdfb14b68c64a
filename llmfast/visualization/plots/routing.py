"""Panels on the routers of a mixture of experts, by layer, beside the curves of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmfast.visualization.smoothing import smoothed
from llmfast.visualization.style import heat_map

VIOLATION = "expert_violation_by_layer"
LOAD = "expert_load_by_layer"
MOST_NAMES = 8
"""Layers up to which each is named."""


def panels(records: list[dict[str, Any]]) -> list[Callable[[Any], None]]:
    """What draws each panel on axes, of what the log of a run has of its routers."""
    drawn = {VIOLATION: _draw_violation, LOAD: _draw_load}
    return [
        lambda axes, name=name, draw=draw: draw(axes, *_logged(records, name))
        for name, draw in drawn.items()
        if any(record.get(name) for record in records)
    ]


def _logged(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and the values at each, by layer."""
    found = [(record["step"], record[name]) for record in records if record.get(name)]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], dtype=float)


def _draw_violation(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    """Values (steps, layers): the load of the busiest expert over the mean, less 1."""
    for layer, own in enumerate(values.T):
        axes.plot(steps, smoothed(own), label=f"{layer}")
    axes.set(title="imbalance of experts by layer")
    axes.set_ylim(bottom=0)
    if values.shape[1] <= MOST_NAMES:
        axes.legend(fontsize=6, ncols=4)


def _draw_load(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    """Values (steps, layers, X): the share of the choices that each expert got; 1 is drawn for an equal share."""
    _, layers, count = values.shape
    image = heat_map(axes, values.reshape(len(steps), -1).T * count, limits=(0.0, 2.0))
    axes.figure.colorbar(image, ax=axes, extend="max")
    axes.grid(visible=False)
    named = range(0, layers, -(-layers // MOST_NAMES))
    axes.set_yticks([layer * count - 0.5 for layer in named], [f"{layer}" for layer in named], va="top")
    shown = sorted({0, len(steps) - 1})
    axes.set_xticks(shown, [f"{steps[place]}" for place in shown])
    axes.set(title="load over an equal share", ylabel="layer with experts")
