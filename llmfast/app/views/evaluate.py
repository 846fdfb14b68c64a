"""Evaluate: results of evaluations beside the size of the models and the memory of their training."""

from __future__ import annotations

import streamlit as st

from llmfast.app.results import Evaluation, read_evaluations
from llmfast.app.widgets import found, in_a_sentence, missing, table


def show() -> None:
    st.title("Evaluate")
    evaluated = found().evaluated
    if not evaluated:
        missing("evaluation", "llmfast eval runs/quickstart --tasks text --data book.txt")
        return
    rows: list[Evaluation] = []
    for name, path in evaluated.items():
        with in_a_sentence():
            rows += read_evaluations(path, name)
    if not rows:
        return
    tasks = list(dict.fromkeys(row.task for row in rows))
    left, right = st.columns(2)
    task = left.selectbox("Task", tasks)
    figures = list(dict.fromkeys(row.figure for row in rows if row.task == task))
    figure = right.selectbox("Figure", figures, format_func=lambda name: name.replace("_", " "))
    shown = [row for row in rows if (row.task, row.figure) == (task, figure)]
    _chart(shown, figure)
    st.header("All figures of this task")
    table([_cells(row) for row in rows if row.task == task], f"Figures of {task}")


def _chart(rows: list[Evaluation], figure: str) -> None:
    points = [
        {
            "model": row.model,
            "value": row.value,
            "low": row.value - (row.stderr or 0),
            "high": row.value + (row.stderr or 0),
        }
        for row in rows
    ]
    title = figure.replace("_", " ")
    encoding = {"y": {"field": "model", "type": "nominal", "title": None, "axis": {"labelLimit": 160}}}
    st.vega_lite_chart(
        points,
        {
            "height": {"step": 40},
            "encoding": encoding,
            "layer": [
                {"mark": "bar", "encoding": {"x": {"field": "value", "type": "quantitative", "title": title}}},
                {
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
                },
            ],
        },
    )
    if any(row.stderr is not None for row in rows):
        st.caption("Lines are one standard error to both sides.")


def _cells(row: Evaluation) -> dict[str, str]:
    value = f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:.4f}"
    return {
        "model": row.model,
        "figure": row.figure.replace("_", " "),
        "value": value if row.stderr is None else f"{value} ± {row.stderr:.4f}",
        "questions": "–" if row.questions is None else f"{row.questions:,}",
        "parameters": "–" if row.parameters is None else f"{row.parameters:,}",
        "memory of training": "–" if row.memory is None else f"{row.memory / 2**20:,.0f} MiB",
    }
