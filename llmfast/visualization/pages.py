"""HTML files that work from the disk: a template of this package with the page's data in it, and no network."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from llmfast.files import atomic_write


def write_page(template: str, data: dict[str, Any], path: Path) -> None:
    """Write ``data``, as JSON, into a template of this package.

    Raises:
        OSError: the file cannot be written.
    """
    files = resources.files("llmfast.visualization")
    page = (
        files.joinpath(template).read_text("utf-8").replace("/*STYLE*/", files.joinpath("page.css").read_text("utf-8"))
    )
    # Inside a script element, "<" could end it.
    content = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    atomic_write(path, page.replace("/*DATA*/", content))
