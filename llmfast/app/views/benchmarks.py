"""Benchmarks: result files of ``llmfast bench``, each contender beside the fastest."""

from __future__ import annotations

import streamlit as st

from llmfast.app.results import Measurement, read_benchmark
from llmfast.app.widgets import found, missing, table


def show() -> None:
    st.title("Benchmarks")
    files = found().benchmarks
    if not files:
        missing("benchmark result", "llmfast bench cpu --out results")
        return
    machine, rows = read_benchmark(files[st.selectbox("Result file", list(files))])
    where = machine.get("gpu") or f"{machine.get('processor')}, {machine.get('cores')} cores"
    st.caption(f"{where} · {str(machine.get('time'))[:10]} · revision {machine.get('revision')}")
    cases = list(dict.fromkeys(row.case for row in rows))
    case = st.selectbox("Case", cases)
    shown = [row for row in rows if row.case == case]
    _chart(shown)
    table([_cells(row) for row in shown], case)
    with st.expander(f"All {len(cases):,} cases"):
        table([{"case": row.case, **_cells(row)} for row in rows], "All cases")


def _chart(rows: list[Measurement]) -> None:
    timed = [{"contender": row.contender, "milliseconds": row.seconds * 1e3} for row in rows if row.seconds]
    if not timed:
        return
    axis = {"labelLimit": 160}
    st.vega_lite_chart(
        timed,
        {
            "mark": "bar",
            "height": {"step": 36},
            "encoding": {
                "y": {"field": "contender", "type": "nominal", "sort": "x", "title": None, "axis": axis},
                "x": {"field": "milliseconds", "type": "quantitative", "title": "median of a call in milliseconds"},
            },
        },
    )


def _cells(row: Measurement) -> dict[str, str]:
    return {
        "contender": row.contender,
        "median": "–" if row.seconds is None else f"{row.seconds * 1e3:,.3f} ms",
        "times the fastest": "–" if row.best is None else f"{row.best:.2f}",
        "status": row.status if not row.note else f"{row.status}: {row.note}",
    }
