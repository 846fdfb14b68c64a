"""Pictures of several runs side by side: their losses by step, and what they reached at which cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfast.visualization.curves import highest, series
from llmfast.visualization.smoothing import smoothed
from llmfast.visualization.style import in_style, plain, save_figure


def plot_run_losses(logs: Mapping[str, list[dict[str, Any]]], path: Path) -> list[str]:
    """Draw the losses of runs by step: of training, smoothed, and of validation, in bits per byte too where a run has
    them. Returns the names of the runs that have none of it, which are left out; without any, there is no file."""
    from matplotlib.figure import Figure

    panels = {
        "training loss, smoothed": "loss",
        "validation loss": "validation_loss",
        "validation, bits per byte": "validation_bits_per_byte",
    }
    found = {
        title: {name: series(records, key) for name, records in logs.items() if len(series(records, key)[0])}
        for title, key in panels.items()
    }
    found = {title: lines for title, lines in found.items() if lines}
    shown = {name for lines in found.values() for name in lines}
    missing = [name for name in logs if name not in shown]
    if not found:
        return missing
    with in_style():
        figure = Figure(figsize=(0.6 + 4.6 * len(found), 4.4 + 0.2 * len(logs)), dpi=120, layout="constrained")
        drawn = {}
        for axes, (title, lines) in zip(figure.subplots(1, len(found), squeeze=False).flat, found.items(), strict=True):
            for name in logs:
                steps, values = lines.get(name, ([], []))  # an empty line keeps each run's color the same in all
                is_training = title.startswith("training")
                marks = {} if is_training else {"marker": "o", "markersize": 4}
                (line,) = axes.plot(steps, smoothed(values) if is_training else values, **marks)
                drawn.setdefault(name, line)
            if top := highest([values for _, values in lines.values()]):
                axes.set_ylim(top=top)
            axes.set(xlabel="step", title=title)
        names = [name for name in logs if name in shown]
        figure.legend([drawn[name] for name in names], [plain(name) for name in names], loc="outside lower center")
        save_figure(figure, path)
    return missing


def plot_bars(figures: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw a panel for each figure with a bar for each run, of which some may not have it.

    Args:
        figures: by what it is, and then by run.
        path: the file, .png or .svg.
    """
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(name for each in figures.values() for name in each))
    columns = min(3, len(figures))
    rows = -(-len(figures) // columns)
    with in_style() as colors:
        size = (1.6 + 3.4 * columns, rows * (0.9 + 0.34 * len(runs)))
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, (title, values) in zip(grid.flat, figures.items(), strict=False):
            for place, name in enumerate(runs):
                value = values.get(name)
                axes.barh(place, value or 0.0, height=0.66, color=colors.accent)
                text = "unknown" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
                axes.annotate(
                    text, (max(value or 0.0, 0.0), place), (3, 0), textcoords="offset points", va="center", fontsize=8
                )
            axes.set_title(title, fontsize=10)
            axes.margins(x=0.25)
            axes.set_xticks([])
            axes.grid(visible=False)
            axes.set_yticks(range(len(runs)), [plain(name) for name in runs], fontsize=8)
        for axes in list(grid.flat)[len(figures) :]:
            axes.set_axis_off()
        grid[0, 0].invert_yaxis()
        save_figure(figure, path)
