"""Tokenizer: how encodings cut a text, and how many bytes their tokens hold."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from llmfast.app.marked import alternating, marked
from llmfast.app.widgets import found, in_a_sentence, table
from llmfast.tokenizer import Tokenizer
from llmfast.tokenizer.compare import row_of
from llmfast.tokenizer.opening import open_tokenizer
from llmfast.tokenizer.registry import list_encoding_names
from llmfast.visualization.maps import visible_text

EXAMPLE = "Tokenizers cut text into pieces: 3.14159, naïve, Привет, def f(x): return x + 1"
MOST_TOKENS = 2000
"""Tokens that are drawn of each encoding."""


def show() -> None:
    st.title("Tokenizer")
    here = {name: str(path) for name, path in found().tokenizers.items()}
    choices = here | {name: name for name in list_encoding_names() if name not in here}
    # A published encoding may have to be downloaded, and so is chosen only where there is nothing else.
    names = st.multiselect("Encodings", list(choices), default=list(here)[:2] or ["gpt2"])
    text = st.text_area("Text", EXAMPLE, height=120)
    opened: dict[str, Tokenizer] = {}
    for name in names:
        with in_a_sentence():
            opened[name] = _open(choices[name], _version(choices[name]))
    if not opened or not text:
        st.info("Choose an encoding and write a text.")
        return
    row = row_of("text", text, list(opened.values()))
    counts = zip(opened.items(), row.tokens, row.bytes_per_token, strict=True)
    table(
        [
            {
                "encoding": name,
                "tokens": f"{count:,}",
                "bytes per token": f"{rate:.3f}",
                "characters per token": f"{row.n_characters / count:.3f}",
                "vocabulary": f"{tokenizer.n_vocab:,}",
            }
            for (name, tokenizer), count, rate in counts
        ],
        "Sizes of the text",
    )
    for name, tokenizer in opened.items():
        st.header(name)
        _tokens(tokenizer, text)


@st.cache_resource(max_entries=8, show_spinner=False)
def _open(name: str, version: float) -> Tokenizer:
    return open_tokenizer(name)


def _version(name: str) -> float:
    """Changes when a tokenizer is written anew."""
    file = Path(name) / "tokenizer.json"
    return file.stat().st_mtime if file.exists() else 0.0


def _tokens(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode_ordinary(text)
    texts = [visible_text(tokenizer.decode_single_token_bytes(token)) for token in tokens[:MOST_TOKENS]]
    notes = [f"{text!r} is token {token}" for text, token in zip(texts, tokens, strict=False)]
    st.html(marked(alternating(texts, notes)))
    if len(tokens) > MOST_TOKENS:
        st.caption(f"The first {MOST_TOKENS:,} of {len(tokens):,} tokens.")
    with st.expander(f"Ids of {len(tokens[:MOST_TOKENS]):,} tokens"):
        st.code(" ".join(map(str, tokens[:MOST_TOKENS])), language=None, wrap_lines=True)
