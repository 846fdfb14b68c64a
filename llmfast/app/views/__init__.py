"""The pages, in the order of the menu."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmfast.app.views import attention, benchmarks, chat, classify, data, evaluate, generate, runs, tokenizer


@dataclass(frozen=True)
class View:
    """A page."""

    name: str
    """Its address."""
    title: str
    icon: str
    show: Callable[[], None]


PAGES = (
    View("runs", "Runs", ":material/monitoring:", runs.show),
    View("generate", "Generate", ":material/edit_note:", generate.show),
    View("chat", "Chat", ":material/chat:", chat.show),
    View("classify", "Classify", ":material/label:", classify.show),
    View("evaluate", "Evaluate", ":material/fact_check:", evaluate.show),
    View("tokenizer", "Tokenizer", ":material/data_array:", tokenizer.show),
    View("attention", "Attention and lens", ":material/visibility:", attention.show),
    View("data", "Data", ":material/database:", data.show),
    View("benchmarks", "Benchmarks", ":material/speed:", benchmarks.show),
)
