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
    """Draw training and validation loss of a run's log by step, in bits per byte, to a PNG file.

    ``nats_to_bits_per_byte`` turns nats per token into bits per byte; ``marks`` are horizontal lines to compare with,
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
            ("validation_loss", "validation, its first part", {"marker": "o", "markersize": 4}),
            ("final_loss", "validation, all of it", {"marker": "*", "markersize": 12, "linestyle": "none"}),
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
        axes.set(
            xlabel="step", ylabel="bits per byte", title="What the model still has to be told about each byte"
        )
        axes.set_ylim(0, top)
        axes.legend(loc="upper right", frameon=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())


def _series(records: list[dict[str, Any]], key: str):
    import numpy as np

    points = [(record["step"], record[key]) for record in records if key in record]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def _smoothed(values):
    """Exponential average over about 25 steps, unbiased at the start (Adam's correction)."""
    import numpy as np

    decay, total, smooth = 0.96, 0.0, np.empty_like(values)
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        smooth[index] = total / (1 - decay ** (index + 1))
    return smooth
