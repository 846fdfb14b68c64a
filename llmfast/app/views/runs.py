"""Runs: curves that grow while a run is trained, quality and cost side by side, configurations."""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from llmfast.app.curves import figures_of, points_of
from llmfast.app.finding import last_written
from llmfast.app.widgets import found, in_a_sentence, missing, table
from llmfast.commands.compare import cells, read_run
from llmfast.training.run_folder import RunFolder

LIVE = 120
"""Seconds since a run was written to within which it counts as being trained."""
COLORS = ["#4a73d9", "#cf7a1c", "#2f9457", "#b256c9", "#d1504f", "#7d8590"]
"""Three times as bright or as dark as a light and a dark page."""
CHART = {
    "mark": {"type": "line", "strokeWidth": 2},
    "encoding": {
        "x": {"field": "step", "type": "quantitative"},
        "y": {"field": "value", "type": "quantitative", "scale": {"zero": False}},
        "color": {
            "field": "run",
            "type": "nominal",
            "scale": {"range": COLORS},
            "legend": {"orient": "bottom", "columns": 1, "labelLimit": 300},
        },
        "strokeDash": {
            "field": "line",
            "type": "nominal",
            "scale": {"domain": ["training", "validation", "final"], "range": [[1, 0], [6, 3], [1, 0]]},
            "legend": None,
        },
    },
    "height": 360,
}


def show() -> None:
    st.title("Runs")
    runs = found().runs
    if not runs:
        missing("run", "llmfast quickstart", "llmfast train --data.sources book.txt --out runs/book")
        return
    names = st.multiselect("Runs to show", list(runs), default=list(runs)[:3])
    chosen = {name: runs[name] for name in names}
    if not chosen:
        st.info("Choose at least one run.")
        return
    is_live = any(time.time() - last_written(run) < LIVE for run in chosen.values())
    st.fragment(_curves, run_every=2 if is_live else None)(chosen)
    st.header("Side by side")
    st.caption(
        "~ marks figures of a run that is not finished: its newest validation, which may be on a part of the data."
    )
    _table(chosen)
    st.header("Configurations")
    for name, run in chosen.items():
        with st.expander(name), in_a_sentence():
            st.code((run / "config.yaml").read_text(encoding="utf-8"), language="yaml")


def _curves(runs: dict[str, Path]) -> None:
    logs = {name: RunFolder(run).records() for name, run in runs.items()}
    figures = figures_of(logs)
    if not figures:
        st.info("Nothing has been logged yet: the first step is still to come.")
        return
    figure = st.selectbox("Figure", figures, format_func=lambda name: name.replace("_", " "))
    points = points_of(logs, figure)
    st.vega_lite_chart(points, _with_points(CHART, figure))
    st.caption("Solid: training, smoothed. Dashed: validation. Point: the finished run on all held-out data.")
    newest = [f"{name}: step {records[-1]['step']:,}" for name, records in logs.items() if records]
    st.caption(" · ".join(newest))


def _with_points(chart: dict, figure: str) -> dict:
    """The chart of a figure, with a mark at each validation."""
    chart = {**chart, "encoding": {**chart["encoding"]}}
    chart["encoding"]["y"] = {**chart["encoding"]["y"], "title": figure.replace("_", " ")}
    marks = {
        "mark": {"type": "point", "filled": True, "size": 45},
        "transform": [{"filter": "datum.line != 'training'"}],
    }
    return {
        "height": chart["height"],
        "encoding": chart["encoding"],
        "layer": [{"mark": chart["mark"]}, marks],
    }


def _table(runs: dict[str, Path]) -> None:
    compared = []
    for run in runs.values():
        with in_a_sentence():
            compared.append(read_run(run))
    if compared:
        names, rows = cells(compared)
        table([dict(zip(names, row, strict=True)) for row in rows], "Quality and cost of the runs")
