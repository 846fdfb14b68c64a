"""Data: what token shards are made of, their most frequent tokens, duplicates, and any of their documents."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from llmfast.app.widgets import found, missing, table
from llmfast.data.prepare import Prepared, open_prepared
from llmfast.data.report import DataReport, SplitReport, report_on

MOST_CHARACTERS = 20_000
"""Of a document that is shown."""


def show() -> None:
    st.title("Data")
    folders = found().data
    if not folders:
        missing("prepared data", "llmfast data prepare data/books --sources books/")
        return
    folder = folders[st.selectbox("Folder", list(folders))]
    prepared = open_prepared(folder, verify=False)
    report = _report(folder, _version(folder))
    table(_figures(report), "Figures of the splits")
    if report.in_both:
        st.warning(f"{report.in_both:,} documents are in training and in validation: validation figures are too good.")
    left, right = st.columns(2)
    with left:
        st.header("Most frequent tokens")
        common = report.splits["train"].common_tokens
        table([{"token": repr(token), "share": f"{share:.2%}"} for token, share in common], "Most frequent tokens")
    with right:
        st.header("What the model sees")
        table([{"tokens": repr(seen), "to predict": repr(target)} for seen, target in report.samples], "Samples")
    _duplicates(report, prepared)
    _document(prepared)


@st.cache_data(max_entries=8, show_spinner="Reading all shards once …")
def _report(folder: Path, version: float) -> DataReport:
    return report_on(open_prepared(folder))


def _version(folder: Path) -> float:
    """Changes when shards are written anew."""
    return max(file.stat().st_mtime for file in folder.glob("*/index*.json"))


def _figures(report: DataReport) -> list[dict[str, str]]:
    def column(split: SplitReport) -> dict[str, str]:
        return {
            "documents": f"{split.documents:,}",
            "duplicates": f"{split.duplicate_documents:,}",
            "median length": f"{split.median_document:,} tokens",
            "longest": f"{split.longest_document:,} tokens",
            "tokens": f"{split.tokens:,}",
            "bytes of text": f"{split.text_bytes:,}",
            "tokens per byte": f"{split.tokens_per_byte:.3f}",
            f"of {report.vocab_size:,} tokens used": f"{split.vocabulary_coverage:.1%}",
        }

    columns = {name: column(split) for name, split in report.splits.items()}
    return [
        {"figure": figure, **{name: values[figure] for name, values in columns.items()}} for figure in columns["train"]
    ]


def _duplicates(report: DataReport, prepared: Prepared) -> None:
    st.header("Duplicates")
    for name, split in report.splits.items():
        if not split.duplicates:
            st.caption(f"{name}: all documents are different.")
            continue
        shards = getattr(prepared, name)
        st.caption(f"{name}: the documents that are there most often.")
        table(
            [
                {"document": f"{first:,}", "times": f"{times:,}", "begins": repr(_text(prepared, shards, first)[:80])}
                for first, times in split.duplicates
            ],
            f"Duplicates of {name}",
        )


def _document(prepared: Prepared) -> None:
    st.header("Documents")
    left, right = st.columns(2)
    shards = getattr(prepared, left.selectbox("Split", ["train", "validation"]))
    number = right.number_input("Document", 0, shards.documents - 1, 0)
    text = _text(prepared, shards, int(number))
    st.code(text[:MOST_CHARACTERS], language=None, wrap_lines=True)
    if len(text) > MOST_CHARACTERS:
        st.caption(f"The first {MOST_CHARACTERS:,} of {len(text):,} characters.")


def _text(prepared: Prepared, shards, number: int) -> str:
    starts, lengths = shards.document_spans
    tokens = shards.read(int(starts[number]), int(lengths[number])).tolist()
    return prepared.tokenizer.decode_bytes(tokens).decode("utf-8", "backslashreplace")
