"""What pages have in common: the folder, what is in it, the servers, and how pages say that something is missing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import streamlit as st

from llmfast.app.background import Background, message_of
from llmfast.app.finding import Found, Model, find
from llmfast.app.servers import Servers
from llmfast.app.tables import table_html

T = TypeVar("T")
SECONDS = 0.3
"""Between two looks at what is being written."""


def folder() -> Path:
    """The folder that ``llmfast app`` was called with."""
    return Path(sys.argv[1])


def found() -> Found:
    """What is in the folder now."""
    return _found(folder())


@st.cache_data(ttl=3, show_spinner=False)
def _found(path: Path) -> Found:
    return find(path)


@st.cache_resource(show_spinner=False)
def servers() -> Servers:
    """The servers of all sessions."""
    return Servers()


def missing(what: str, *commands: str) -> None:
    """Say that there is nothing to show, and which command makes it."""
    st.info(f"There is no {what} in `{folder()}`. To make one:", icon=":material/info:")
    st.code("\n".join(commands), language="bash")


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """What cannot be done inside is said in one sentence on the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        st.error(message_of(error), icon=":material/error:")


def draw_until_done(works: Sequence[Background], draw: Callable[[], None]) -> None:
    """Draw, and again every moment until all of the works are done."""
    waits = not all(work.is_done for work in works)

    @st.fragment(run_every=SECONDS if waits else None)
    def drawn() -> None:
        draw()
        if waits and all(work.is_done for work in works):
            st.rerun()  # the page as it is when nothing is written

    drawn()


def table(rows: Sequence[Mapping[str, str]], name: str) -> None:
    """A table; see ``table_html``."""
    if rows:
        st.html(table_html(rows, name))
    else:
        st.caption("There are none.")


def loaded_models() -> None:
    """The models that are in memory, in the sidebar, each with a button that gives its memory back."""
    loaded = servers().loaded()
    if not loaded:
        return
    with st.sidebar:
        st.header("In memory")
        for path, server in loaded.items():
            memory = "" if server.memory is None else f", {server.memory / 2**20:,.0f} MiB"
            if st.button(f"Unload {server.name}{memory}", key=f"unload {path}", width="stretch"):
                servers().unload(path)
                st.rerun()


def choose_models(models: dict[str, Model], label: str, *, most: int | None, first: int = 1) -> list[Model]:
    """Models that are chosen by name."""
    names = st.multiselect(label, list(models), default=list(models)[:first], max_selections=most)
    return [models[name] for name in names]
