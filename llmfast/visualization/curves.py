"""Loss curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from llmfast.files import atomic_write


def plot_losses(
    records: list[dict[str, Any]],
    path: Path,
    *,
    nats_to_bits_per_byte: float,
    marks: dict[str, float] | None = None,
) -> None:
    """Plot the training and validation loss of a run in bits per byte by step, as a PNG file.

    ``nats_to_bits_per_byte`` converts nats per token to bits per byte. ``marks`` are horizontal lines for comparison,
    by name, in bits per byte.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        steps, losses = _series(records, "loss")
        axes.plot(
            steps, losses * nats_to_bits_per_byte, color="#9ecae1", linewidth=0.8, label="training, each step"
        )
        axes.plot(
            steps, _smoothed(losses) * nats_to_bits_per_byte, color="#2171b5", label="training, smoothed"
        )
        top = min(6.0, float(losses.max()) * nats_to_bits_per_byte * 1.05) if len(losses) else 6.0
        for key, label, style in (
            ("validation_loss", "validation, a subset", {"marker": "o", "markersize": 4}),
            ("final_loss", "validation, all", {"marker": "*", "markersize": 12, "linestyle": "none"}),
        ):
            steps, losses = _series(records, key)
            if len(steps):
                axes.plot(steps, losses * nats_to_bits_per_byte, color="#d94801", label=label, **style)
        for name, height in (marks or {}).items():
            axes.axhline(height, color="#737373", linestyle="--", linewidth=1)
            axes.annotate(
                f"{name} {height:.2f}",
                (0, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                color="#525252",
                fontsize=9,
            )
        axes.set(xlabel="step", ylabel="bits per byte", title="Loss in bits per byte")
        axes.set_ylim(0, top)
        axes.legend(loc="upper right", frameon=True)
        _save(figure, path)


def plot_sweep(
    logs: dict[str, list[dict[str, Any]]], results: list[tuple[dict[str, Any], float]], folder: Path
) -> list[Path]:
    """Plot a sweep as PNG files in ``folder``: the training losses of the runs, and the final loss by each setting.

    ``logs`` are records by the name of a run; ``results`` are (settings, final loss) pairs. Returns the files.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    files = [folder / "losses.png"]
    with matplotlib.style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for name, records in logs.items():
            steps, losses = _series(records, "loss")
            axes.plot(steps, _smoothed(losses), label=name)
        axes.set(
            xlabel="step",
            ylabel="training loss, smoothed (nats per token)",
            title="Training losses of the sweep",
        )
        axes.legend(fontsize=8)
        _save(figure, files[0])
        names = list(results[0][0]) if results else []
        for name in names:
            files.append(folder / f"{name.rpartition('.')[2]}.png")
            figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
            _plot_setting(figure.subplots(), name, results)
            _save(figure, files[-1])
    return files


def _plot_setting(axes: Any, name: str, results: list[tuple[dict[str, Any], float]]) -> None:
    """Final loss by one setting, with a line for each combination of the others."""
    lines: dict[str, list[tuple[Any, float]]] = {}
    for settings, loss in results:
        others = ", ".join(
            f"{key.rpartition('.')[2]} {value}" for key, value in settings.items() if key != name
        )
        lines.setdefault(others, []).append((settings[name], loss))
    numeric = all(isinstance(settings[name], int | float) for settings, _ in results)
    for others, points in lines.items():
        points.sort(key=lambda point: point[0] if numeric else str(point[0]))
        values = [value if numeric else str(value) for value, _ in points]
        axes.plot(values, [loss for _, loss in points], marker="o", label=others or None)
    if numeric and all(settings[name] > 0 for settings, _ in results):
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel="validation loss (nats per token)")
    if len(lines) > 1:
        axes.legend(fontsize=8)


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())


def _series(records: list[dict[str, Any]], key: str):
    import numpy as np

    points = [(record["step"], record[key]) for record in records if key in record]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def _smoothed(values):
    """Exponential average over about 25 steps, with Adam's bias correction."""
    import numpy as np

    decay, total, smooth = 0.96, 0.0, np.empty_like(values)
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        smooth[index] = total / (1 - decay ** (index + 1))
    return smooth
