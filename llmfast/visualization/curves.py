"""Loss curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmfast.visualization.plots import routing
from llmfast.visualization.smoothing import smoothed
from llmfast.visualization.style import in_style, save_figure, theme

if TYPE_CHECKING:
    import numpy as np

RATES = ("learning_rate", "matrix_learning_rate")
# What has a place of its own, or none; any other name is a figure of the objective, its routers or its evaluations.
_PLACED = {"step", "loss", "learning_rate_factor", *RATES}


def plot_losses(
    records: list[dict[str, Any]],
    path: Path,
    *,
    units: Mapping[str, float] = MappingProxyType({}),
    marks: dict[str, float] | None = None,
) -> None:
    """Plot the training and validation loss of a run by step, and below it the learning rates, the norm of the
    gradient, each other figure that it logged, and the load of experts by layer. The file is PNG or SVG.

    Args:
        records: the log.
        path: the file to write.
        units: names of other units of the loss, with the factors to them; the first is plotted instead of the loss.
        marks: horizontal lines for comparison, by name, in that unit.
    """
    from matplotlib.figure import Figure

    unit, factor = next(iter(units.items()), ("loss", 1.0))
    unit = unit.replace("/", " per ")
    names = figure_names(records, without={"loss", *(each.replace("/", "_per_") for each in units)})
    with in_style() as colors:
        panels: list[Callable[[Any], None]] = [partial(_plot_figure, name=name, records=records) for name in names]
        if len(series(records, RATES[0])[0]):
            panels.insert(0, partial(_plot_rates, records=records))
        panels += routing.panels(records)
        rows = 1 + (len(panels) + 1) // 2
        figure = Figure(figsize=(8, 4.5 + 2.2 * (rows - 1)), dpi=120, layout="constrained")
        grid = figure.add_gridspec(rows, 2, height_ratios=[4.5, *[2.2] * (rows - 1)])
        axes = figure.add_subplot(grid[0, :])
        steps, losses = series(records, "loss")
        axes.plot(steps, losses * factor, color=colors.soft, linestyle="-", linewidth=0.8, label="training, each step")
        axes.plot(steps, smoothed(losses) * factor, color=colors.accent, linestyle="-", label="training, smoothed")
        top = float(losses.max()) * factor * 1.05 if len(losses) else 6.0
        for key, label, style in (
            ("validation_loss", "validation, a subset", {"marker": "o", "markersize": 4, "linestyle": "-"}),
            ("final_loss", "validation, all", {"marker": "*", "markersize": 12, "linestyle": "none"}),
        ):
            steps, losses = series(records, key)
            if len(steps):
                axes.plot(steps, losses * factor, color=colors.warn, label=label, **style)
        for name, height in (marks or {}).items():
            axes.axhline(height, color=colors.muted, linestyle="--", linewidth=1)
            axes.annotate(
                f"{name} {height:.2f}",
                (0, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                color=colors.muted,
                fontsize=9,
            )
        axes.set(xlabel="step", ylabel=unit, title="Loss" if unit == "loss" else f"Loss in {unit}")
        # A policy loss may be negative, and then the axis is matplotlib's choice.
        if units:
            axes.set_ylim(0, min(6.0, top))
        axes.legend(loc="upper right", frameon=True)
        for number, panel in enumerate(panels):
            panel(figure.add_subplot(grid[1 + number // 2, number % 2]))
        save_figure(figure, path)


def figure_names(records: list[dict[str, Any]], without: set[str]) -> list[str]:
    """The figures in a log, once for training and validation together."""
    found = {}
    for record in records:
        for key, value in record.items():
            if key not in _PLACED and isinstance(value, int | float):
                prefix, _, rest = key.partition("_")
                found[rest if prefix in ("validation", "final") else key] = None
    return [name for name in found if name not in without]


def _plot_rates(axes: Any, records: list[dict[str, Any]]) -> None:
    """The learning rates by step, of matrices apart where they have their own."""
    for name in RATES:
        steps, values = series(records, name)
        if len(steps):
            axes.plot(steps, values, label=name.replace("_", " "))
    axes.set(title="learning rate")
    axes.set_ylim(bottom=0)
    if len(axes.lines) > 1:
        axes.legend(fontsize=8)


def _plot_figure(axes: Any, name: str, records: list[dict[str, Any]]) -> None:
    """One figure by step: of training, smoothed, and of validation."""
    colors = theme()
    steps, values = series(records, name)
    if len(steps):
        axes.plot(steps, values, color=colors.soft, linestyle="-", linewidth=0.8)
        axes.plot(steps, smoothed(values), color=colors.accent, linestyle="-")
    steps, values = series(records, f"validation_{name}")
    if len(steps):
        axes.plot(steps, values, color=colors.warn, marker="o", markersize=4, linestyle="-")
    steps, values = series(records, f"final_{name}")
    if len(steps):
        axes.plot(steps, values, color=colors.warn, marker="*", markersize=12, linestyle="none")
    axes.set(title=name.replace("_", " "))


def plot_sweep(
    logs: dict[str, list[dict[str, Any]]], results: list[tuple[dict[str, Any], float]], folder: Path
) -> list[Path]:
    """Plot a sweep as PNG files in ``folder``: the training losses of the runs, and the final loss by each setting.

    ``logs`` are records by the name of a run; ``results`` are (settings, final loss) pairs, in the order in which
    values that are no numbers are drawn. Returns the files.
    """
    from matplotlib.figure import Figure

    files = [folder / "losses.png"]
    with in_style():
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for name, records in logs.items():
            steps, losses = series(records, "loss")
            axes.plot(steps, smoothed(losses), label=name)
        if top := highest([series(records, "loss")[1] for records in logs.values()]):
            axes.set_ylim(top=top)
        axes.set(
            xlabel="step",
            ylabel="training loss, smoothed",
            title="Training losses of the sweep",
        )
        axes.legend(fontsize=8)
        save_figure(figure, files[0])
        names = list(results[0][0]) if results else []
        for name in names:
            files.append(folder / f"{name.rpartition('.')[2]}.png")
            figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
            _plot_setting(figure.subplots(), name, results)
            save_figure(figure, files[-1])
    return files


def highest(curves: Sequence[Any]) -> float | None:
    """The top of the axis: above where runs begin, so that one that diverges does not press the others flat."""
    begun = [curve[0] for curve in curves if len(curve)]
    return 1.1 * float(max(begun)) if begun and max(begun) > 0 else None


def _plot_setting(axes: Any, name: str, results: list[tuple[dict[str, Any], float]]) -> None:
    """Final loss by one setting, with a line for each combination of the others."""
    lines: dict[str, list[tuple[Any, float]]] = {}
    for settings, loss in results:
        others = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items() if key != name)
        lines.setdefault(others, []).append((settings[name], loss))
    numeric = all(isinstance(settings[name], int | float) for settings, _ in results)
    for others, points in lines.items():
        if numeric:
            points.sort()
        values = [value if numeric else str(value) for value, _ in points]
        axes.plot(values, [loss for _, loss in points], marker="o", label=others or None)
    if numeric and all(settings[name] > 0 for settings, _ in results):
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel="validation loss")
    if len(lines) > 1:
        axes.legend(fontsize=8)


def series(records: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a figure was logged, and its values."""
    import numpy as np

    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)
