"""Generate: continuations of a prompt, of one model or of two side by side, with the probabilities of tokens."""

from __future__ import annotations

from collections.abc import Generator

import streamlit as st

from llmfast.app.asking import Settings, complete
from llmfast.app.background import Piece, Reply
from llmfast.app.finding import Model
from llmfast.app.marked import by_probability, likeliest, marked
from llmfast.app.widgets import choose_models, draw_until_done, found, missing, servers, table

REPLIES = "generate replies"


def show() -> None:
    st.title("Generate")
    models = found().language_models
    if not models:
        missing("language model", "llmfast quickstart")
        return
    with st.form("generate", border=False):
        chosen = choose_models(models, "Models (two of them are shown side by side)", most=2)
        prompt = st.text_area("Prompt", "The ", height=120)
        settings = sampling_settings("generate")
        asked = st.form_submit_button("Generate", type="primary")
    if asked:
        _begin(chosen, prompt, settings)
    _show_replies()


def sampling_settings(page: str) -> Settings:
    """Inputs for how replies are sampled."""
    columns = st.columns(5)
    temperature = columns[0].number_input(
        "Temperature", 0.0, 2.0, 0.8, 0.1, key=f"{page} temperature", help="0 takes the likeliest token each time"
    )
    top_k = columns[1].number_input("Top-k", 0, 100_000, 0, key=f"{page} top-k", help="0 for all tokens")
    top_p = columns[2].number_input("Top-p", 0.01, 1.0, 1.0, 0.05, key=f"{page} top-p")
    seed = columns[3].number_input("Seed", 0, 2**31 - 1, 0, key=f"{page} seed", help="the same seed, the same reply")
    most = columns[4].number_input("Most tokens", 1, 100_000, 128, key=f"{page} most tokens")
    return Settings(temperature, top_k, top_p, seed, most)


def _begin(models: list[Model], prompt: str, settings: Settings) -> None:
    for _, reply in st.session_state.get(REPLIES, []):
        reply.stop()
    st.session_state[REPLIES] = []
    if not models:
        st.error("Choose a model first.")
    elif not prompt:
        st.error("The prompt is empty: write how the text begins.")
    else:
        st.session_state[REPLIES] = [(model, _reply(model, prompt, settings)) for model in models]


def _reply(model: Model, prompt: str, settings: Settings) -> Reply:
    shared = servers()

    def stream() -> Generator[Piece, None, None]:
        return complete(shared.get(model.path), prompt, settings)

    return Reply(stream)


def _show_replies() -> None:
    replies: list[tuple[Model, Reply]] = st.session_state.get(REPLIES, [])
    if not replies:
        return
    works = [reply for _, reply in replies]
    if not all(work.is_done for work in works) and st.button("Stop"):
        for work in works:
            work.stop()

    def draw() -> None:
        for column, (model, reply) in zip(st.columns(len(replies)), replies, strict=True):
            with column:
                st.header(model.name)
                _draw(reply)

    draw_until_done(works, draw)
    if all(work.is_done for work in works):
        _tables(replies)


def _draw(reply: Reply) -> None:
    tokens = list(reply.tokens)
    if tokens:
        st.html(marked(by_probability(tokens)))
    if reply.error:
        st.error(reply.error, icon=":material/error:")
    elif not reply.is_done:
        st.caption(f"{len(tokens):,} tokens so far" if tokens else "Loading the model, which takes a moment …")
    else:
        ended = {"length": "as many as asked for", "stop": "the model ended it"}
        how = "stopped" if reply.was_stopped else ended.get(reply.finish_reason or "", "ended")
        st.caption(f"{len(tokens):,} tokens, {how}. The stronger its color, the less likely a token was; point at one.")


def _tables(replies: list[tuple[Model, Reply]]) -> None:
    """The probabilities as a table, for keyboards and screen readers."""
    for model, reply in replies:
        if reply.tokens:
            with st.expander(f"Probabilities of {model.name} as a table"):
                table(
                    [
                        {
                            "token": repr(token.text),
                            "probability": "" if token.probability is None else f"{token.probability:.1%}",
                            "likeliest tokens": likeliest(token).removeprefix("likeliest: "),
                        }
                        for token in reply.tokens
                    ],
                    f"Probabilities of {model.name}",
                )
