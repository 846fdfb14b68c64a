"""The charts of README.md and docs/: speed beside the peers, as SVG files for light and for dark pages."""

from __future__ import annotations

import io
import re
from pathlib import Path

from llmfast.visualization.style import THEMES, Theme

from ..results import FOLDER, OURS, ROOT, Result, read
from .pages import PASSES, SHOWN
from .report import rate

CHARTS = ROOT / "docs" / "images"
VOCABULARY = "o200k_base"
FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def draw_charts(folder: Path = FOLDER, out: Path = CHARTS) -> list[Path]:
    """Draws the encoding chart in each theme and returns its files."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme, colors in THEMES.items():
        path = out / f"encoding-{theme}.svg"
        path.write_text(encoding_chart(folder, colors), encoding="utf-8")
        paths.append(path)
    return paths


def encoding_chart(folder: Path, theme: Theme) -> str:
    """Encoding speed by text and library, as an SVG document."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    speeds = encoding_speeds(folder)
    libraries = sorted(
        {name for by_library in speeds.values() for name in by_library},
        key=lambda name: (name != OURS, -max(by_library.get(name, 0) for by_library in speeds.values())),
    )
    top = max(value for by_library in speeds.values() for value in by_library.values())
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmfast", "font.size": 11}):
        figure = Figure(figsize=(9.4, 0.75 + 0.36 * len(libraries)), layout="constrained")
        panels = figure.subplots(1, len(speeds), sharey=True)
        for axes, (text, by_library) in zip(panels, speeds.items(), strict=True):
            for place, name in enumerate(libraries):
                value = by_library.get(name)
                if value is None:
                    continue
                color = theme.accent if name == OURS else theme.others
                axes.barh(place, value, 0.72, color=color)
                weight = "bold" if name == OURS else "normal"
                axes.annotate(
                    rate(value),
                    (value, place),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    color=theme.text,
                    fontweight=weight,
                )
            axes.set_title(f"{text}, MB/s", fontsize=11, color=theme.muted, loc="left")
            axes.set_xlim(0, 1.2 * top)
            axes.set_xticks([])
            axes.set_yticks(range(len(libraries)), libraries, color=theme.text)
            axes.tick_params(left=False)
            axes.spines[:].set_visible(False)
        panels[0].invert_yaxis()
        for label in panels[0].get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == OURS else "normal")
        return as_svg(figure)


def encoding_speeds(folder: Path) -> dict[str, dict[str, float]]:
    """MB/s by text and library, of the steady pass with one vocabulary.

    Raises:
        ValueError: the result file has no such results.
    """
    report = read(folder / SHOWN["tokenizer"])
    speeds: dict[str, dict[str, float]] = {}
    for result in report.results:
        vocabulary, _, text = result.op.partition(": ")
        if vocabulary == VOCABULARY and result.pass_ == PASSES["steady"] and shown(result):
            speeds.setdefault(text, {})[result.contender] = result.bytes / result.median_s / 1e6
    if not speeds:
        raise ValueError(f"{report.file_name}: no results of {VOCABULARY} for a chart of {PASSES['steady']}")
    return speeds


def shown(result: Result) -> bool:
    return result.status == "ok" and bool(result.median_s)


def as_svg(figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<!DOCTYPE.*?>\n", "", file.getvalue(), flags=re.DOTALL)
    return re.sub("font-family: [^;]*;", f"font-family: {FONTS};", text)
