"""How all plots look: one palette for light and for dark pages, told apart in black and white.

Lines differ in lightness and in dashes or marks; maps go from the paper's color to ink, so that their order survives
without colors; signed maps mark what is below zero with a sign.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colors of one kind of page."""

    paper: str
    text: str
    muted: str
    """Of labels that are read second."""
    grid: str
    empty: str
    soft: str
    """A pale kind of the accent: what lies behind a line."""
    accent: str
    """What is looked at first; llmfast's own bars and lines."""
    warn: str
    """A second color, against the accent in lightness too."""
    others: str
    """What the accent is compared with."""
    lines: tuple[str, ...]
    """Of several lines, the accent first."""
    low_to_high: str
    """matplotlib's name of a map from the paper to ink."""
    signed: str
    """matplotlib's name of a map with the paper in its middle."""


THEMES: dict[str, Theme] = {
    "light": Theme(
        paper="#ffffff",
        text="#1f2328",
        muted="#59636e",
        grid="#d8dee4",
        empty="#eff2f5",
        soft="#b6d5fb",
        accent="#0969da",
        warn="#d1640a",
        others="#afb8c1",
        lines=("#0969da", "#d1640a", "#1a7f37", "#8250df", "#59636e", "#bf3989"),
        low_to_high="Blues",
        signed="PuOr",
    ),
    "dark": Theme(
        paper="#0d1117",
        text="#f0f6fc",
        muted="#9198a1",
        grid="#30363d",
        empty="#262c36",
        soft="#1f4b80",
        accent="#4493f8",
        warn="#f0883e",
        others="#59636e",
        lines=("#4493f8", "#f0883e", "#3fb950", "#ab7df8", "#9198a1", "#db61a2"),
        low_to_high="Blues_r",
        signed="PuOr",
    ),
}
DASHES = ("-", "--", ":", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 2.5)))
_theme: ContextVar[str] = ContextVar("theme", default="light")


def theme() -> Theme:
    """The theme in which figures are drawn here: light, unless ``in_theme`` says otherwise."""
    return THEMES[_theme.get()]


@contextlib.contextmanager
def in_theme(name: ThemeName) -> Iterator[None]:
    """Within it, figures are drawn for pages of that kind."""
    token = _theme.set(name)
    try:
        yield
    finally:
        _theme.reset(token)


@contextlib.contextmanager
def in_style(*, grid: bool = True) -> Iterator[Theme]:
    """Within it, figures have the style of this package; without a grid for pictures and heat maps."""
    import matplotlib.style
    from cycler import cycler

    colors = theme()
    # Every color with its own dashes first, then all with the next one's: 36 lines that differ.
    turns = range(len(DASHES))
    dashes = [DASHES[(place + turn) % len(DASHES)] for turn in turns for place in turns]
    cycle = cycler(color=colors.lines * len(DASHES)) + cycler(linestyle=dashes)
    settings: dict[str, Any] = {
        "axes.grid": grid,
        "axes.axisbelow": True,
        "axes.edgecolor": colors.muted,
        "axes.facecolor": colors.paper,
        "axes.labelcolor": colors.text,
        "axes.prop_cycle": cycle,
        "axes.spines.right": not grid,
        "axes.spines.top": not grid,
        "figure.facecolor": colors.paper,
        "font.size": 10,
        "grid.color": colors.grid,
        "grid.linewidth": 0.7,
        "legend.edgecolor": colors.grid,
        "legend.facecolor": colors.paper,
        "legend.labelcolor": colors.text,
        "svg.hashsalt": "llmfast",
        "text.color": colors.text,
        "xtick.color": colors.muted,
        "xtick.labelcolor": colors.text,
        "ytick.color": colors.muted,
        "ytick.labelcolor": colors.text,
    }
    with matplotlib.style.context(["default", settings]):
        yield colors


def plain(text: str) -> str:
    """Text as matplotlib shows it as it is, without reading formulas between dollar signs."""
    return text.replace("$", r"\$")


def heat_map(
    axes: Axes,
    values: np.ndarray,
    *,
    limits: tuple[float | None, float | None] = (None, None),
    signed: bool = False,
    numbers: str = "",
    most_numbers: int = 48,
    norm: Any = None,
) -> AxesImage:
    """Draw an array (rows, columns) as colored cells.

    Args:
        axes: where.
        values: the array; NaN is an empty cell.
        limits: the values of the first and the last color; those of the array if left out.
        signed: colors on both sides of zero. What is below it has a minus sign in its cell.
        numbers: the format of the number in each cell, such as ``.2g``; none if left out.
        most_numbers: cells up to which they have numbers.
        norm: matplotlib's scale of the colors, instead of limits.
    """
    import numpy as np

    colors = theme()
    low, high = limits
    if signed:
        high = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        low = -high
    scale = {"norm": norm} if norm is not None else {"vmin": low, "vmax": high}
    name = colors.signed if signed else colors.low_to_high
    image = axes.imshow(values, cmap=name, aspect="auto", interpolation="nearest", **scale)
    if (numbers and values.size <= most_numbers) or signed:
        for (row, column), value in np.ndenumerate(values):
            text = format(value, numbers) if numbers and values.size <= most_numbers else ""
            if not text and signed and value < 0.1 * image.norm.vmin:
                text = "−"
            if text and np.isfinite(value):
                ink = ink_on(image.cmap(image.norm(value)))
                axes.text(column, row, text.replace("-", "−"), ha="center", va="center", fontsize=7, color=ink)
    return image


def ink_on(color: tuple[float, ...]) -> str:
    """Black or white, whichever can be read on a color."""
    red, green, blue = color[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def whole_numbers(*axes: Any) -> None:
    """Ticks of these axes at whole numbers only."""
    for axis in axes:
        axis.get_major_locator().set_params(integer=True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, as the kind of file that the end of its name says (.png, .svg).

    Raises:
        OSError: the file cannot be written.
    """
    import io

    from llmfast.files import atomic_write

    buffer = io.BytesIO()
    kind = Path(path).suffix.removeprefix(".") or "png"
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    atomic_write(path, buffer.getvalue())
