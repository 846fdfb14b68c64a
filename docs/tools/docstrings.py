"""What docstrings write in the way of reStructuredText, in Markdown: examples and formulas become fenced blocks."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

# A line that ends a block of indented lines, blank ones among them.
BLOCK = r"\n((?:[ \t]*\n)*(?:[ \t]+\S.*\n?|[ \t]*\n)+)"
EXAMPLE = re.compile(rf"^Example::\n{BLOCK}", re.MULTILINE)
FORMULA = re.compile(rf"^\.\. math::{BLOCK}", re.MULTILINE)


class Markdown(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """
    >>> print(as_markdown("Twice x.\\n\\nExample::\\n\\n    twice(2)\\n\\nMore."))
    Twice x.
    <BLANKLINE>
    **Example**
    <BLANKLINE>
    ```python
    twice(2)
    ```
    <BLANKLINE>
    More.
    """
    text = EXAMPLE.sub(lambda found: f"**Example**\n\n{fenced(found[1], language(found[1]))}\n\n", text + "\n")
    return FORMULA.sub(lambda found: f"{fenced(found[1], 'latex')}\n\n", text).strip()


def language(code: str) -> str:
    return "pycon" if code.lstrip().startswith(">>>") else "python"


def fenced(code: str, language: str) -> str:
    return f"```{language}\n{textwrap.dedent(code).strip()}\n```"
