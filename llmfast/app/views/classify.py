"""Classify: what several classifiers say of one text, with probabilities."""

from __future__ import annotations

from typing import Any

import streamlit as st

from llmfast.app.asking import classify
from llmfast.app.background import Background
from llmfast.app.finding import Model
from llmfast.app.widgets import choose_models, draw_until_done, found, missing, servers

ANSWERS = "classify answers"
MOST_LABELS = 20
"""Labels that are listed, the likeliest first."""


def show() -> None:
    st.title("Classify")
    models = found().classifiers
    if not models:
        missing(
            "classifier",
            "llmfast classify --data.sources reviews.tsv --out runs/reviews",
            "llmfast classify --data.sources reviews.tsv --start runs/quickstart --adapter lora --out runs/lora",
        )
        return
    with st.form("classify", border=False):
        chosen = choose_models(models, "Classifiers", most=4, first=3)
        text = st.text_area("Text", "", height=120, placeholder="A text to classify")
        asked = st.form_submit_button("Classify", type="primary")
    if asked:
        _begin(chosen, text)
    answers: list[tuple[Model, Background[dict[str, Any]]]] = st.session_state.get(ANSWERS, [])
    if answers:
        draw_until_done([work for _, work in answers], lambda: _draw(answers))


def _begin(models: list[Model], text: str) -> None:
    st.session_state[ANSWERS] = []
    if not models:
        st.error("Choose a classifier first.")
    elif not text.strip():
        st.error("There is no text: write one to classify.")
    else:
        shared = servers()
        st.session_state[ANSWERS] = [
            (model, Background(lambda path=model.path: classify(shared.get(path), text))) for model in models
        ]


def _draw(answers: list[tuple[Model, Background[dict[str, Any]]]]) -> None:
    for column, (model, work) in zip(st.columns(len(answers)), answers, strict=True):
        with column:
            st.header(model.name)
            if work.error:
                st.error(work.error, icon=":material/error:")
            elif work.result is None:
                st.caption("Loading the classifier, which takes a moment …")
            else:
                _draw_answer(work.result)


def _draw_answer(answer: dict[str, Any]) -> None:
    if answer["value"] is not None:
        st.metric("Number", f"{answer['value']:.4g}")
    else:
        st.metric("Label" if answer["label"] is not None else "Labels", ", ".join(answer["labels"]) or "none")
        probabilities = sorted(answer["probabilities"].items(), key=lambda each: -each[1])
        for label, probability in probabilities[:MOST_LABELS]:
            st.progress(probability, text=f"{label} {probability:.1%}")
        if len(probabilities) > MOST_LABELS:
            st.caption(f"and {len(probabilities) - MOST_LABELS:,} less likely labels")
    if answer["was_cut"]:
        st.caption("The text is longer than the classifier reads, and was cut.")
