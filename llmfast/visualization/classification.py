"""What a classifier gets right: tables for a terminal, and plots of its confusions and its confidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfast.visualization.style import heat_map, in_style, ink_on, plain, save_figure

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

MOST_CELLS = 30  # labels up to which a plot has numbers in its cells
MOST_COLUMNS = 12  # labels up to which a matrix is printed


def label_table(names: Sequence[str], counts: Any) -> Table:
    """Precision, recall, F1 and number of texts of each label; ``counts`` is a ``LabelCounts``."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label")
    for name in ("precision", "recall", "F1", "texts"):
        table.add_column(name, justify="right")
    rows = zip(names, counts.precision, counts.recall, counts.f1, counts.support, strict=True)
    for name, precision, recall, f1, support in rows:
        table.add_row(Text(name), f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{support:,}")
    return table


def confusion_table(names: Sequence[str], confusion: np.ndarray) -> Table:
    """A confusion matrix with a row for each true label; the matrix of many labels is better plotted."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("true \\ predicted")
    for name in names:
        table.add_column(Text(name), justify="right")
    for place, (name, row) in enumerate(zip(names, confusion, strict=True)):
        cells = [Text(f"{count:,}", "bold" if place == column else "") for column, count in enumerate(row)]
        table.add_row(Text(name), *cells)
    return table


def plot_confusion(names: Sequence[str], confusion: np.ndarray, path: Path) -> None:
    """Draw a confusion matrix as a PNG file: colors by the share of each true label, counts in the cells."""
    import numpy as np
    from matplotlib.figure import Figure

    size = min(12.0, 3.2 + 0.45 * len(names))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with in_style(grid=False):
        figure = Figure(figsize=(size + 1, size), dpi=120, layout="constrained")
        axes = figure.subplots()
        image = heat_map(axes, shares, limits=(0, 1))
        figure.colorbar(image, ax=axes, label="share of the true label")
        if len(names) <= MOST_CELLS:
            for (row, column), count in np.ndenumerate(confusion):
                ink = ink_on(image.cmap(image.norm(shares[row, column])))
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink)
        shown = [plain(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), shown)
        axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
        save_figure(figure, path)


def plot_reliability(before: Any, path: Path, *, after: Any | None = None, temperature: float | None = None) -> None:
    """Draw the share of right predictions by their confidence as a PNG file.

    Args:
        before: a ``Reliability``.
        path: the file to write.
        after: the same with the temperature, if one was fitted.
        temperature: that temperature.
    """
    from matplotlib.figure import Figure

    with in_style() as colors:
        figure = Figure(figsize=(6, 6.5), dpi=120, layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=colors.muted, linestyle="--", linewidth=1, label="perfectly calibrated")
        shown = {"as trained": (before, colors.accent)}
        if after is not None:
            shown[f"with temperature {temperature:.2f}"] = (after, colors.warn)
        for number, (name, (found, color)) in enumerate(shown.items()):
            filled = found.counts > 0
            label = f"{name}: expected error {found.error:.3f}"
            axes.plot(
                found.confidence[filled],
                found.accuracy[filled],
                marker="os"[number],
                color=color,
                linestyle=("-", "--")[number],
                label=label,
            )
            bins = len(found.counts)
            places = [(place + 0.5) / bins for place in range(bins)]
            below.bar(places, found.counts, width=0.9 / bins, color=color, alpha=1 - 0.5 * number)
        axes.set(ylabel="share that is right", title="Reliability", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=True)
        below.set(xlabel="confidence", ylabel="predictions")
        save_figure(figure, path)
