"""The plots of the studies: each of ``recipes/NAME/page.yaml``, for light and for dark pages.

They are drawn from ``recipes/NAME/results.json`` as ``docs/images/studies/NAME-PLOT-light.svg`` and ``-dark.svg``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfast.visualization.style import THEMES, ThemeName, in_style, in_theme

from ..results import ROOT
from .charts import as_svg
from .studies import RECIPES, Plot, found_in, named, read_page, read_results, records_of, studies

IMAGES = ROOT / "docs" / "images" / "studies"
MARKERS = "osD^vPX*"


def draw_plots(recipes: Path = RECIPES, out: Path = IMAGES, problems: list[str] | None = None) -> list[Path]:
    """Draw every plot of every study for light and for dark pages; returns the files.

    Args:
        recipes: the folder of the studies.
        out: where to draw.
        problems: a study that cannot be drawn is left as it was, and why is added here; an error without a list.

    Raises:
        ValueError: without ``problems``, a study lacks its results, or they lack what a plot shows.
    """
    paths = []
    for name in studies(recipes):
        try:
            with named(name):
                paths += _draw(name, recipes, out)
        except ValueError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return paths


def _draw(name: str, recipes: Path, out: Path) -> Iterator[Path]:
    for plot_name, plot in read_page(name, recipes).plots.items():
        for theme in THEMES:
            path = out / f"{name}-{plot_name}-{theme}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(plot_svg(plot, read_results(name, recipes), theme), encoding="utf-8")
            yield path


def plot_svg(plot: Plot, content: dict[str, Any], theme: ThemeName) -> str:
    """One plot as an SVG document."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    # Text stays text.
    with in_theme(theme), in_style(), mpl.rc_context({"svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        lines = dict(series(plot, content))
        for place, (name, points) in enumerate(lines.items()):
            marker = MARKERS[place % len(MARKERS)] if len(points) <= 20 else None
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=5, linewidth=1.6, label=name)
        for name in plot.log:
            axes.set(**{f"{name}scale": "log"})
            axis = getattr(axes, f"{name}axis")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(plot.labels.get("x", plot.x))
        axes.set_ylabel(plot.labels.get("y", plot.y))
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
        return as_svg(figure)


def series(plot: Plot, content: dict[str, Any]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The lines of a plot by name: points in the order of x; values that are null are left out."""
    if plot.lines is not None:
        found = content["results"]
        named = found_in(found, plot.lines) if isinstance(plot.lines, str) else plot.lines
        for name, pairs in named.items():
            yield (
                name,
                [(x, y) for x, y in (found_in(found, pairs) if isinstance(pairs, str) else pairs) if y is not None],
            )
        return
    assert plot.rows is not None, "a plot has rows or lines"
    grouped: dict[str, list[tuple[float, float]]] = {}
    for record in records_of(content, plot.rows):
        name = (
            f"{plot.series.rpartition('.')[2].replace('_', ' ')} {found_in(record, plot.series)}"
            if plot.series
            else plot.y
        )
        if (y := found_in(record, plot.y)) is not None:
            grouped.setdefault(name, []).append((found_in(record, plot.x), y))
    for name, points in grouped.items():
        yield name, sorted(points)
