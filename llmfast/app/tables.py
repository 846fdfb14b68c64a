"""Tables as HTML: the keyboard can scroll them, which it cannot in Streamlit's own, and screen readers read them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

STYLE = """
<style>
.rows { overflow-x: auto; max-height: 32rem; margin-bottom: .5rem; }
.rows table { border-collapse: collapse; width: 100%; }
.rows th, .rows td {
  text-align: left; font-weight: normal; padding: .3rem .75rem .3rem 0;
  border-bottom: 1px solid rgba(128, 128, 128, .35); font-variant-numeric: tabular-nums; vertical-align: top;
}
.rows thead th { font-weight: 600; white-space: nowrap; }
.rows :is(th, td).number { text-align: right; white-space: nowrap; }
</style>
"""


def table_html(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """A table with a column for each key; the first column names the rows.

    Args:
        rows: with the same keys.
        name: what the table is called for screen readers.
    """
    names = list(rows[0])
    numbers = {key for key in names[1:] if all(_is_number(row[key]) for row in rows)}
    kinds = {key: ' class="number"' if key in numbers else "" for key in names}
    head = "".join(f'<th scope="col"{kinds[key]}>{html.escape(key)}</th>' for key in names)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[names[0]])}</th>'
        + "".join(f"<td{kinds[key]}>{html.escape(row[key])}</td>" for key in names[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'{STYLE}<div class="rows" role="region" tabindex="0" aria-label="{html.escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _is_number(text: str) -> bool:
    return text == "–" or text[:1].isdigit() or text[:2].strip("~-")[:1].isdigit()
