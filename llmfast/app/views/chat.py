"""Chat: a conversation with a model that was finetuned to answer."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import streamlit as st

from llmfast.app.asking import chat
from llmfast.app.background import Piece, Reply
from llmfast.app.finding import Model
from llmfast.app.views.generate import sampling_settings
from llmfast.app.widgets import draw_until_done, found, missing, servers

CONVERSATIONS = "conversations"


@dataclass
class Conversation:
    """What was said, and the answer that is being written."""

    messages: list[dict[str, str]] = field(default_factory=list)
    answer: Reply | None = None

    def take_answer(self) -> None:
        """Make an answer that has ended a part of what was said. A question that failed is asked again by the user."""
        if self.answer is not None and self.answer.is_done and not self.answer.error:
            self.messages.append({"role": "assistant", "content": self.answer.text})
            self.answer = None


def show() -> None:
    st.title("Chat")
    models = found().language_models
    if not models:
        missing(
            "model to talk to",
            "llmfast quickstart",
            "llmfast sft --data.sources instructions.jsonl --start runs/quickstart --out runs/chat",
        )
        return
    model = models[st.selectbox("Model", list(models))]
    conversation: Conversation = st.session_state.setdefault(CONVERSATIONS, {}).setdefault(model.path, Conversation())
    with st.expander("Settings"):
        system = st.text_area("System prompt", "", height=80)
        settings = sampling_settings("chat")
    conversation.take_answer()
    if st.button("New chat", disabled=not (conversation.messages or conversation.answer)):
        if conversation.answer is not None:
            conversation.answer.stop()
        st.session_state[CONVERSATIONS][model.path] = conversation = Conversation()
    is_writing = conversation.answer is not None and not conversation.answer.is_done
    if (text := st.chat_input("Message", disabled=is_writing)) and not is_writing:
        if conversation.answer is not None:  # it failed, and so did its question
            conversation.messages.pop()
        conversation.messages.append({"role": "user", "content": text})
        opening = [{"role": "system", "content": system}] if system else []
        messages, shared = [*opening, *conversation.messages], servers()

        def stream() -> Generator[Piece, None, None]:
            return chat(shared.get(model.path), messages, settings)

        conversation.answer = Reply(stream)
    _draw(model, conversation)


def _draw(model: Model, conversation: Conversation) -> None:
    if not conversation.messages:
        st.caption(
            f"Write a message to begin. {model.name} answers if it has a chat template, which finetuning gives it."
        )
    for message in conversation.messages:
        with st.chat_message(message["role"]):
            st.text(message["content"])
    answer = conversation.answer
    if answer is None:
        return

    def draw() -> None:
        with st.chat_message("assistant"):
            if answer.text:
                st.text(answer.text)
            if answer.error:
                st.error(answer.error, icon=":material/error:")
            elif not answer.text:
                st.caption("…")

    draw_until_done([answer], draw)
