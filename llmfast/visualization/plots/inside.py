"""Pictures of predictions by layer, norms, ablation, and of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmfast.visualization.ablation import Ablation
from llmfast.visualization.lens import LensReading
from llmfast.visualization.norms import ActivationNorms
from llmfast.visualization.style import heat_map, in_style, ink_on, plain, save_figure, whole_numbers

MOST_TOKENS = 16
"""Of a prompt in the picture of a lens, the last ones."""


def state_names(count: int) -> list[str]:
    """What the rows of the residual stream are called: the embeddings, then the layers whose results they are."""
    return ["embeddings", *(f"layer {layer}" for layer in range(count - 1))]


def plot_lens(reading: LensReading, names: Sequence[str], texts: Sequence[str], path: Path, *, title: str) -> None:
    """Draw the likeliest token of each layer (row) after each token of the prompt (column), shaded by its probability,
    with the rank of the token that does follow.

    Args:
        reading: of ``logit_lens``.
        names: the tokens of ``reading.tokens[..., 0]``, flattened, as text.
        texts: the tokens of the prompt.
        path: the file, .png or .svg.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    rows, total = reading.ranks.shape
    first = max(0, total - MOST_TOKENS)
    count = total - first
    probabilities = reading.probabilities[:, first:, 0].numpy()
    grid = np.array(names, dtype=object).reshape(rows, total)[:, first:]
    with in_style(grid=False) as colors:
        figure = Figure(figsize=(1.9 + 0.82 * count, 1.6 + 0.42 * rows), dpi=120, layout="constrained")
        axes = figure.subplots()
        image = heat_map(axes, probabilities, limits=(0, 1))
        for row in range(rows):
            for column in range(count):
                ink = ink_on(image.cmap(image.norm(probabilities[row, column])))
                text, rank = plain(_short(grid[row, column])), f"{int(reading.ranks[row, first + column]):,}"
                axes.text(column, row + 0.12, text, ha="center", va="center", fontsize=7.5, color=ink)
                axes.text(column, row - 0.28, rank, ha="center", va="center", fontsize=5.5, color=ink)
        axes.invert_yaxis()
        axes.set_yticks(range(rows), state_names(rows), fontsize=8)
        axes.set_xticks(range(count), [plain(_short(each)) for each in texts[first:]], fontsize=8)
        axes.set_xlabel("token that is read; small numbers: rank of the token that follows in the prompt", fontsize=8)
        bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.01, fraction=0.03)
        bar.set_label("probability of the likeliest token", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        axes.set_title(plain(title), fontsize=11, color=colors.text)
        save_figure(figure, path)


def _short(text: str, most: int = 9) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plot_next(texts: Sequence[str], probabilities: Sequence[float], path: Path, *, title: str) -> None:
    """Draw the likeliest next tokens as bars."""
    from matplotlib.figure import Figure

    with in_style() as colors:
        figure = Figure(figsize=(6, 1.0 + 0.27 * len(texts)), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(texts)), probabilities, color=colors.accent, height=0.75)
        for place, value in enumerate(probabilities):
            axes.annotate(f"{value:.1%}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(texts)), [plain(text) for text in texts], family="monospace", fontsize=9)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, min(1.0, 1.18 * max(probabilities)) or 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_title(plain(title), fontsize=11)
        save_figure(figure, path)


def plot_norms(norms: ActivationNorms, path: Path, *, title: str) -> None:
    """Draw the norm of each token's state by layer as a map, and beside it the largest and the median value."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = len(norms.norms)
    with in_style(grid=False) as colors:
        figure = Figure(figsize=(10, 1.8 + 0.24 * rows), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        values = norms.norms.clamp(min=1e-12).numpy()
        low, high = float(values.min()), float(values.max())
        image = heat_map(left, values, norm=LogNorm(low, high if high > low else 2 * low))
        figure.colorbar(image, ax=left, label="norm")
        left.invert_yaxis()
        left.set_yticks(range(rows), state_names(rows), fontsize=8)
        left.set(xlabel="position of the token", title="norm of each token's state")
        whole_numbers(left.xaxis)
        right.grid(True)
        places = range(rows)
        right.plot(norms.largest.amax(-1).numpy(), places, marker="o", label="largest of all tokens")
        right.plot(norms.largest.median(-1).values.numpy(), places, marker="s", label="largest of a typical token")
        right.plot(norms.medians.numpy(), places, marker="^", label="median")
        right.set_xscale("log")
        right.set_yticks(places, state_names(rows), fontsize=8)
        right.set(xlabel="absolute value", title="values of the states")
        right.legend(fontsize=8)
        figure.suptitle(plain(title), fontsize=11, color=colors.text)
        save_figure(figure, path)


def plot_ablation(found: Ablation, layers: Sequence[int], heads: Sequence[int], path: Path, *, title: str) -> None:
    """Draw the change of the loss without each head as a map over layers and heads, and without each layer as bars."""
    from matplotlib.figure import Figure

    rows, columns = found.heads.shape
    with in_style(grid=False) as colors:
        width = 2.2 + min(8.0, max(2.4, 0.42 * columns))
        figure = Figure(figsize=(width + 3.6, 1.7 + min(7.0, max(1.4, 0.3 * rows))), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[width, 3.4])
        image = heat_map(left, found.heads.numpy(), signed=True, numbers="+.3f", most_numbers=72)
        figure.colorbar(image, ax=left)
        left.set_xticks(range(columns), heads, fontsize=8)
        left.set_yticks(range(rows), layers, fontsize=8)
        left.set(xlabel="head", ylabel="layer", title="without one head")
        right.barh(range(rows), found.layers.numpy(), color=colors.accent, height=0.7)
        for place, value in enumerate(found.layers.tolist()):
            side = "left" if value >= 0 else "right"
            shift = (3 if value >= 0 else -3, 0)
            right.annotate(f"{value:+.2f}".replace("-", "−"), (value, place), shift, textcoords="offset points",
                           va="center", ha=side, fontsize=8)  # fmt: skip
        right.axvline(0, color=colors.muted, linewidth=0.8)
        right.margins(x=0.25)
        right.set_ylim(*left.get_ylim())
        right.set_yticks(range(rows), layers, fontsize=8)
        right.set(xlabel="nats per token", ylabel="layer", title="without one layer")
        figure.suptitle(plain(f"{title}: change of the loss of {found.loss:.3f}"), fontsize=11)
        save_figure(figure, path)
