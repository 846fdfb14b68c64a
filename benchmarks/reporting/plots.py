"""Plots of result files: speed by size, the fraction of the measured ceiling, and the roofline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmfast.visualization.style import THEMES, in_style

from ..results import OURS, PYTORCH, TEXT, Report, Result, read_all
from .report import NO_DTYPES, grouped, shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = THEMES["light"]
OURS_COLOR, PYTORCH_COLOR = COLORS.accent, COLORS.muted
OTHERS = tuple(color for color in COLORS.lines if color not in (OURS_COLOR, PYTORCH_COLOR))
MARKS = "osD^vP*X"
COLUMNS = 3  # panels per row
MOST_PANELS, MOST_ROWS = 18, 28  # per picture, so that it stays readable
MOST_SIZES = 6  # per panel; above it, each kind of heads gets its own panel
HEADS = ("H", "K", "D")


def draw(folder: Path, out: Path) -> Iterator[Path]:
    """Draws every plot that the result files of a folder have data for, and yields the paths."""
    out.mkdir(parents=True, exist_ok=True)
    for report in read_all(folder):
        for part, picture in parts_of(report).items():
            for kind, plot in (("speed", speed), ("ceiling", ceiling), ("roofline", roofline)):
                path = out / f"{Path(report.file_name).stem}{part}-{kind}.png"
                with in_style():
                    figure = plot(picture)
                    if figure is not None:
                        figure.savefig(path)
                if figure is not None:
                    yield path


def parts_of(report: Report) -> dict[str, Report]:
    """Splits a report by what is appended to the file name: nothing, or the pass if one plot would have too many bars
    or mixed units."""
    results = timed(report.results)
    passes = dict.fromkeys(result.pass_ for result in results)
    panels = panels_of(results).values()
    one_unit = len({unit_of(each)[0] for each in panels}) == 1
    if len(passes) == 1 or (one_unit and len(panels) <= MOST_ROWS):
        return {"": report}
    return {
        f"-{re.sub('[^a-z0-9]+', '-', pass_.lower())}": replace(
            report,
            suite=f"{report.suite}, {pass_}",
            results=[result for result in report.results if result.pass_ == pass_],
        )
        for pass_ in passes
    }


def new_figure(width: float, height: float, report: Report, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    where = report.machine["gpu"] or report.machine["processor"]
    rehearsal = " (a rehearsal, whose figures mean nothing)" if report.size == "tiny" else ""
    figure.suptitle(f"{report.suite}: {title}, {where}, {report.machine['time'][:10]}{rehearsal}", fontsize=11)
    return figure


def looks(names: list[str]) -> dict[str, dict[str, str]]:
    """Color and marker of each contender: llmfast in blue, PyTorch in gray; variants share a color."""
    others = iter(OTHERS * 4)
    styles = {}
    for name, mark in zip(names, MARKS * 4, strict=False):
        if name.startswith(OURS):
            color = OURS_COLOR
        elif name.startswith(PYTORCH):
            color = PYTORCH_COLOR
        else:
            color = next(others)
        styles[name] = {"color": color, "marker": mark}
    return styles


def timed(results: list[Result]) -> list[Result]:
    return [result for result in results if result.status == "ok" and result.median_s]


def contenders(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(result.contender for result in results))


# ------------------------------------------------------------------------------------------ speed by size


def speed(report: Report) -> Figure | None:
    """One panel per op, pass and dtype: lines over the size if there are several sizes, else bars."""
    panels = panels_of(timed(report.results))
    if not panels:
        return None
    if all(len(grouped(results)) == 1 for results in panels.values()):
        return bars(report)
    shown = list(panels.items())[:MOST_PANELS]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(4.2 * columns + 1.6, 3.2 * rows + 0.6, report, "speed by size")
    styles = looks(contenders([result for _, results in shown for result in results]))
    for place, (title, results) in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, place)
        lines(axes, title, results, styles)
    legend(figure, styles)
    return figure


def panels_of(results: list[Result]) -> dict[str, list[Result]]:
    """Results by op, pass and dtype."""
    panels: dict[str, list[Result]] = {}
    for result in results:
        panels.setdefault(f"{result.op}, {result.pass_}, {result.dtype}", []).append(result)
    parts: dict[str, list[Result]] = {}
    for title, together in panels.items():
        for result in together:
            several = len(grouped(together)) > MOST_SIZES
            heads = [f"{name}={result.shape[name]}" for name in HEADS if several and name in result.shape]
            parts.setdefault("\n".join([title, *([" ".join(heads)] if heads else [])]), []).append(result)
    return parts


def lines(axes: Axes, title: str, results: list[Result], styles: dict[str, dict[str, str]]) -> None:
    unit, value = unit_of(results)
    ordered = sorted(grouped(results).values(), key=lambda group: tuple(reversed(group[0].shape.values())))
    shapes = [group[0].shape for group in ordered]
    varying = [name for name in shapes[0] if len({shape.get(name) for shape in shapes}) > 1]
    labels = ["\n".join(f"{name}={shape[name]}" for name in varying or shape) for shape in shapes]
    fixed = " ".join(f"{name}={size}" for name, size in shapes[0].items() if varying and name not in varying)
    axes.set_title(title if fixed in title else f"{title}\n{fixed}", fontsize=9)
    for name, style in styles.items():
        points = [
            (place, value(result))
            for place, group in enumerate(ordered)
            for result in group
            if result.contender == name
        ]
        if points:
            axes.plot(*zip(*points, strict=True), markersize=5, linewidth=1.4, linestyle="-", **style)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel(unit, fontsize=8)
    tidy(axes, "y")


def bars(report: Report) -> Figure:
    """One bar per contender, for ops and passes with a single size."""
    groups = list(grouped(timed(report.results)).values())[:MOST_ROWS]
    names = contenders([result for group in groups for result in group])
    styles = looks(names)
    figure = new_figure(9.5, 1.4 + 0.16 * sum(len(group) + 1.2 for group in groups), report, "speed")
    axes = figure.add_subplot()
    unit, value = unit_of([result for group in groups for result in group])
    place, ticks = 0.0, []
    several = len({group[0].pass_ for group in groups}) > 1
    for group in groups:
        first = place
        for result in group:
            style = styles[result.contender]
            axes.barh(place, value(result), 0.86, color=style["color"], alpha=shade(result.contender, names))
            axes.annotate(
                f" {short_number(value(result))}  {result.contender}",
                (value(result), place),
                va="center",
                fontsize=6.5,
            )
            place += 1
        ticks.append(((first + place - 1) / 2, label_of(group[0], several)))
        place += 1.2
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=7.5)
    axes.invert_yaxis()
    axes.set_ylim(place - 0.8, -0.9)
    values = [value(result) for group in groups for result in group]
    if max(values) > 300 * min(values):
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 4)
    else:
        axes.set_xlim(0, max(values) * 1.25)
    axes.set_xlabel(unit, fontsize=8)
    tidy(axes, "x")
    return figure


def unit_of(results: list[Result]) -> tuple[str, Callable[[Result], float]]:
    """The most informative unit of these results; more is better if possible."""
    if all(result.tokens for result in results):
        return "tokens/s", lambda result: result.tokens / result.median_s
    if all(result.dtype == TEXT and result.bytes for result in results):
        return "MB/s", lambda result: result.bytes / result.median_s / 1e6
    if all(result.fraction_of_copy is not None for result in results):
        if sum(bound_by_product(result) for result in results) > len(results) / 2:
            return "TFLOP/s", lambda result: result.flops / result.median_s / 1e12
        return "GB/s", lambda result: result.bytes / result.median_s / 1e9
    if max(result.median_s for result in results) >= 1e-2:
        return "ms (less is better)", lambda result: 1e3 * result.median_s
    return "µs per call (less is better)", lambda result: 1e6 * result.median_s


def bound_by_product(result: Result) -> bool:
    return result.fraction_of_gemm > result.fraction_of_copy


# ------------------------------------------------------------------------------------- fraction of the ceiling


def ceiling(report: Report) -> Figure | None:
    """llmfast and the best other contender as fractions of the rate of a copy or a matrix product."""
    pairs = []
    for group in grouped(timed(report.results)).values():
        known = [result for result in group if result.fraction_of_copy is not None]
        mine, others = ([r for r in known if r.contender.startswith(OURS) is own] for own in (True, False))
        if mine:
            best = [min(each, key=lambda result: result.median_s) for each in (mine, others) if each]
            pairs.append((label_of(group[0]), best))
    pairs = pairs[:MOST_ROWS]
    if not pairs:
        return None
    figure = new_figure(8.5, 1.3 + 0.42 * len(pairs), report, "fraction of the measured ceiling")
    axes = figure.add_subplot()
    for place, (_, results) in enumerate(pairs):
        for offset, result in zip((-0.19, 0.19), results, strict=False):
            fraction = max(result.fraction_of_copy, result.fraction_of_gemm)
            color = OURS_COLOR if result.contender.startswith(OURS) else PYTORCH_COLOR
            axes.barh(place + offset, fraction, 0.34, color=color)
            axes.annotate(f" {fraction:.0%}  {result.contender}", (fraction, place + offset), va="center", fontsize=7)
    axes.set_yticks(range(len(pairs)), [label for label, _ in pairs], fontsize=7.5)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(0, 1.3 * max(1, *(fraction_of(result) for _, results in pairs for result in results)))
    tidy(axes, "x")
    return figure


def fraction_of(result: Result) -> float:
    return max(result.fraction_of_copy, result.fraction_of_gemm)


# -------------------------------------------------------------------------------------------------- the roofline


def roofline(report: Report) -> Figure | None:
    """Operations per second over operations per byte, below the two ceilings measured in the same run."""
    results = [r for r in timed(report.results) if r.flops and r.bytes and r.fraction_of_gemm]
    if not results:
        return None
    figure = new_figure(8, 5, report, "roofline")
    axes = figure.add_subplot()
    styles = looks(contenders(results))
    intensity = [result.flops / result.bytes for result in results]
    copy = report.ceilings["copy_bytes_per_s"]
    roofs = {r.dtype: product_rate(r) for r in results}
    ridges = [product / copy for product in roofs.values()]
    low, high = min(intensity + ridges) / 4, max(intensity + ridges) * 4
    unit, size = ("TFLOP/s", 1e12) if min(roofs.values()) > 1e12 else ("GFLOP/s", 1e9)
    for (dtype, product), dash in zip(roofs.items(), ("-", "--", ":"), strict=False):
        xs = (low, product / copy, high)
        ys = [min(x * copy, product) / size for x in xs]
        axes.plot(xs, ys, color="black", linewidth=1, linestyle=dash, label=f"ceiling, {dtype}")
    for name, style in styles.items():
        mine = [result for result in results if result.contender == name]
        xs, ys = [r.flops / r.bytes for r in mine], [r.flops / r.median_s / size for r in mine]
        front = 3 if name.startswith(OURS) else 2
        axes.scatter(xs, ys, s=30, color=style["color"], marker=style["marker"], label=name, zorder=front, alpha=0.85)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations per byte", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.legend(fontsize=7.5, loc="lower right")
    tidy(axes, "both")
    return figure


def product_rate(result: Result) -> float:
    """The rate of the matrix product to which the fraction of this result refers."""
    return result.flops / result.median_s / result.fraction_of_gemm


# ---------------------------------------------------------------------------------------------------- the looks


def label_of(result: Result, with_pass: bool = True) -> str:
    dtype = "" if result.dtype in NO_DTYPES else f", {result.dtype}"
    label = f"{result.op}{f', {result.pass_}' if with_pass else ''}{dtype}"
    return f"{label}\n{shape_text(result)}".strip()


def shade(name: str, names: list[str]) -> float:
    """Variants of a contender are paler than the contender itself."""
    family = next((each for each in (OURS, PYTORCH) if name.startswith(each)), name)
    variants = [each for each in names if each.startswith(family)]
    return max(0.35, 1 - 0.3 * variants.index(name))


def short_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def legend(figure: Figure, styles: dict[str, dict[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)


def tidy(axes: Axes, grid: str) -> None:
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid)
    axes.tick_params(labelsize=7.5)
    if grid == "y":
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
