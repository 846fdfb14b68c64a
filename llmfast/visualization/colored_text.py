"""Text colored by a number of each token: on an HTML page that works from disk, and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmfast.visualization.pages import write_page

if TYPE_CHECKING:
    from rich.text import Text

# The colors at full strength, above and below zero; the text on them is black.
ABOVE, BELOW = (255, 176, 0), (120, 170, 255)


def write_text_page(
    texts: Sequence[str],
    values: Sequence[float | None],
    path: Path,
    *,
    title: str,
    summary: str,
    unit: str,
    full: float,
    notes: Sequence[str] = (),
) -> None:
    """Write the page: pointing at a token shows its number, a click pins it; arrow keys, Enter and Escape do the same.

    Args:
        texts: the tokens.
        values: their numbers, None where there is none; any below zero makes it a scale with two ends.
        path: the file.
        title, summary: what stands above the text.
        unit: what the numbers are.
        full: the absolute value with the strongest color.
        notes: what else is said of each token.
    """
    data = {
        "title": title,
        "summary": summary,
        "unit": unit,
        "full": full,
        "signed": any(value is not None and value < 0 for value in values),
        "texts": list(texts),
        "values": list(values),
        "notes": list(notes),
    }
    write_page("text.html", data, path)


def colored(texts: Sequence[str], values: Sequence[float | None], *, full: float) -> Text:
    """The text for a terminal: the stronger a token's color, the larger its number; underlined below zero."""
    from rich.text import Text

    shown = Text()
    for text, value in zip(texts, values, strict=True):
        style = "" if value is None or not math.isfinite(value) else _style(value / full)
        shown.append(text, style)
        if text.endswith("\\n"):
            shown.append("\n")
    return shown


def _style(share: float) -> str:
    strength = min(1.0, abs(share))
    color = ABOVE if share >= 0 else BELOW
    mixed = ",".join(f"{round(255 + strength * (part - 255))}" for part in color)
    return f"{'underline ' if share < 0 else ''}black on rgb({mixed})"
