"""Draws the pictures of the pages under docs/how: ``python -m docs.tools.pictures`` at the repository root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.reporting.charts import CHARTS, as_svg
from llmfast.visualization.style import THEMES, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(out: Path = CHARTS) -> list[Path]:
    """Draws every picture in both themes and returns the files."""
    paths = []
    for name, (picture, width, height) in PICTURES.items():
        for theme, colors in THEMES.items():
            path = out / f"{name}-{theme}.svg"
            path.write_text(svg_of(picture, width, height, colors), encoding="utf-8")
            paths.append(path)
    return paths


def svg_of(picture: Callable[[Axes, Theme], None], width: float, height: float, colors: Theme) -> str:
    """One unit of the picture is a hundredth of an inch; the origin is at the top left."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmfast", "font.size": 9.5}):
        figure = Figure(figsize=(width / 100, height / 100))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        picture(axes, colors)
        return as_svg(figure)


def box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str | None = None) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=4"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=fill, edgecolor=edge or "none"))


def say(axes: Axes, x: float, y: float, words: str, color: str, at: str = "center", **style) -> None:
    axes.text(x, y, words, color=color, ha=at, va="center", **style)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


# ------------------------------------------------------------------------------------------- attention tiles

TILES, WINDOW = 8, 4  # tiles a side; tiles of keys that a window reaches back


def attention_tiles(axes: Axes, c: Theme) -> None:
    size, left, top, row = 30, 90, 46, 5
    for query in range(TILES):
        for key in range(TILES):
            seen = query - WINDOW <= key <= query
            edge = key in (query, query - WINDOW)
            fill = c.empty if not seen else c.soft if edge else c.accent
            box(axes, left + size * key, top + size * query, size - 3, size - 3, fill)
    box(axes, left - 4, top + size * row - 4, size * TILES + 5, size + 5, "none", c.warn)
    say(axes, left + size * TILES / 2, 14, "keys, in tiles", c.text)
    arrow(axes, (left, 30), (left + size * TILES, 30), c.muted)
    say(axes, 38, top + size * TILES / 2, "queries,\nin tiles", c.text)
    say(axes, 38, top + size * row + 13, "one\nprogram", c.warn)
    x = 370
    legend = (
        (c.accent, "every pair counts: no mask is computed"),
        (c.soft, "some pairs count: masked"),
        (c.empty, "no pair counts: never loaded"),
    )
    for place, (color, words) in enumerate(legend):
        box(axes, x, 20 + 26 * place, 17, 17, color)
        say(axes, x + 26, 29 + 26 * place, words, c.text, "left")
    box(axes, x, 112, 432, 172, "none", c.warn)
    steps = (
        ("A program owns one tile of queries.", "bold"),
        ("It loads one tile of keys and values at a time, and keeps", "normal"),
        ("   m, the largest score so far,", "normal"),
        ("   l, the sum of exp(score − m),", "normal"),
        ("   o, the sum of exp(score − m) · value.", "normal"),
        ("When m grows, l and o are multiplied by exp(old m − new m).", "normal"),
        ("At the end it writes o / l and m + log l.", "normal"),
    )
    for place, (words, weight) in enumerate(steps):
        indent = 22 if words.startswith(" ") else 0
        say(axes, x + 14 + indent, 132 + 22 * place, words.strip(), c.text, "left", fontweight=weight)


# ---------------------------------------------------------------------------------------------- text to ids

PIECES = (("the", None), (" lower", (" ", "l", "o", "w", "e", "r")), (" price", None))
# What cl100k_base does with " lower"; the ids are its own, too.
MERGES = ((" ", "l", "o", "w", "er"), (" l", "o", "w", "er"), (" l", "ow", "er"), (" l", "ower"), (" lower",))


def text_to_ids(axes: Axes, c: Theme) -> None:
    for y, words in ((24, "text"), (88, "split"), (152, "look up"), (330, "ids")):
        say(axes, 16, y, words, c.muted, "left")
    centers = (190, 400, 610)
    box(axes, 100, 8, 600, 32, c.empty)
    say(axes, 400, 24, "the lower price", c.text, fontsize=11)

    for (piece, letters), x, number in zip(PIECES, centers, ("1820", "4827", "3430"), strict=True):
        arrow(axes, (x, 40), (x, 70), c.muted)
        box(axes, x - 60, 72, 120, 32, c.soft)
        say(axes, x, 88, piece.replace(" ", "␣"), c.text, fontsize=11)
        arrow(axes, (x, 104), (x, 134), c.muted)
        box(axes, x - 60, 136, 120, 32, c.empty)
        say(axes, x, 152, "new: merge" if letters else "in the cache", c.warn if letters else c.text)
        if letters:
            for place, parts in enumerate((letters, *MERGES)):
                draw_parts(axes, c, x, 184 + 20 * place, parts)
        arrow(axes, (x, 168), (x, 182 if letters else 312), c.muted)
        if letters:
            arrow(axes, (x, 302), (x, 312), c.muted)
        box(axes, x - 60, 314, 120, 32, c.accent)
        say(axes, x, 330, number, c.paper, fontsize=11, fontweight="bold")


def draw_parts(axes: Axes, c: Theme, center: float, y: float, parts: tuple[str, ...]) -> None:
    """One row of tokens, as wide as their letters."""
    unit, gap = 15, 3
    x = center - unit * sum(map(len, parts)) / 2
    for part in parts:
        box(axes, x, y, unit * len(part) - gap, 16, c.soft)
        say(axes, x + (unit * len(part) - gap) / 2, y + 8, part.replace(" ", "␣"), c.text, fontsize=8.5)
        x += unit * len(part)


# -------------------------------------------------------------------------------------------------- resume


def resume(axes: Axes, c: Theme) -> None:
    left, unit = 120, 5.2  # units a step
    end = left + 100 * unit

    def at(step: float) -> float:
        return left + unit * step

    say(axes, 16, 36, "uninterrupted", c.text, "left")
    box(axes, left, 28, end - left, 16, c.accent)
    say(axes, 16, 96, "interrupted", c.text, "left")
    box(axes, left, 88, at(72) - left, 16, c.accent)
    say(axes, at(72) + 10, 96, "killed", c.warn, "left", fontweight="bold")
    say(axes, 16, 156, "resumed", c.text, "left")
    box(axes, at(50), 148, end - at(50), 16, c.accent)
    for step in (25, 50):
        axes.plot(at(step), 96, marker="D", markersize=8, color=c.warn)
        say(axes, at(step), 74, f"checkpoint {step}", c.text, fontsize=8.5)
    arrow(axes, (at(50), 106), (at(50), 146), c.warn)
    for y in (36, 156):
        say(axes, end + 12, y, "the same weights", c.text, "left", fontweight="bold")
    box(axes, left, 186, end - left, 104, "none", c.muted)
    say(axes, left + 14, 204, "A checkpoint holds", c.text, "left", fontweight="bold")
    parts = (
        ("weights", "optimizer moments", "step, hence the schedule"),
        ("position in the data", "scale of the loss (float16)", "recent losses"),
    )
    for row, names in enumerate(parts):
        for column, name in enumerate(names):
            box(axes, left + 14 + 168 * column, 220 + 34 * row, 158, 26, c.soft)
            say(axes, left + 93 + 168 * column, 233 + 34 * row, name, c.text, fontsize=8.5)


PICTURES: dict[str, tuple[Callable[[Axes, Theme], None], float, float]] = {
    "attention-tiles": (attention_tiles, 816, 300),
    "text-to-ids": (text_to_ids, 740, 360),
    "resume": (resume, 800, 300),
}

if __name__ == "__main__":
    for path in draw():
        print(path)
