"""Attention and lens: what happens in a model while it reads a prompt, drawn by ``llmfast look``."""

from __future__ import annotations

import streamlit as st

from llmfast.app.background import Background
from llmfast.app.looking import Drawn, look
from llmfast.app.widgets import draw_until_done, found, missing

KINDS = {
    "attention": "Attention",
    "lens": "Predictions by layer (logit lens)",
    "loss": "Loss of each token",
    "attribute": "What made it expect the next token",
    "norms": "Activation norms",
    "ablate": "Loss without a head or a layer",
}
"""Commands of ``llmfast look`` that draw, and what they are called here."""
DRAWING = "attention drawing"
EXAMPLE = "The trophy does not fit in the suitcase because it is too big, so we need a larger suitcase."


def show() -> None:
    st.title("Attention and lens")
    models = found().language_models
    if not models:
        missing("language model", "llmfast quickstart")
        return
    with st.form("attention", border=False):
        name = st.selectbox("Model", list(models))
        prompt = st.text_area("Prompt", EXAMPLE, height=120)
        first, second, third = st.columns(3)
        what = first.selectbox("What to show", list(KINDS), format_func=KINDS.__getitem__)
        layers = second.text_input("Layers", "", placeholder="all", help="of attention: numbers from 0 with spaces")
        heads = third.text_input("Heads", "", placeholder="all", help="of attention: numbers from 0 with spaces")
        asked = st.form_submit_button("Look", type="primary")
    if asked:
        path = models[name].path
        chosen = {"layers": _numbers("Layers", layers), "heads": _numbers("Heads", heads)}
        if what != "attention" and any(chosen.values()):
            raise ValueError("Layers and heads can be chosen of attention only: leave them empty")
        st.session_state[DRAWING] = Background(lambda: look(path, prompt, what, **chosen))
    drawing: Background[Drawn] | None = st.session_state.get(DRAWING)
    if drawing is not None:
        draw_until_done([drawing], lambda: _draw(drawing))


def _numbers(name: str, text: str) -> list[str]:
    words = text.replace(",", " ").split()
    if wrong := [word for word in words if not (word.isascii() and word.isdecimal())]:
        raise ValueError(f"{name} are numbers from 0 with spaces between, got {wrong[0]!r}")
    return words


def _draw(drawing: Background[Drawn]) -> None:
    if drawing.error:
        st.error(drawing.error, icon=":material/error:")
    elif drawing.result is None:
        st.caption("Loading the model and reading the prompt, which takes a moment …")
    else:
        for title, page in drawing.result.pages.items():
            st.header(title)
            st.iframe(page, height=720)
        for title, picture in drawing.result.pictures.items():
            st.header(title)
            st.image(picture, caption=title)
