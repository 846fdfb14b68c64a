"""``llmfast look`` as a child process: its memory is free again when the pictures are drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmfast.app import child


@dataclass(frozen=True)
class Drawn:
    """What the command wrote, by titles."""

    pages: dict[str, str]
    """HTML."""
    pictures: dict[str, bytes]
    """PNG."""


def look(
    model: Path, prompt: str, what: str = "attention", *, layers: Sequence[str] = (), heads: Sequence[str] = ()
) -> Drawn:
    """Draw what is in a model while it reads a prompt.

    Args:
        model: its folder.
        prompt: the text that it reads.
        what: the command of ``llmfast look``.
        layers, heads: those to show of its attention; all if left out.

    Raises:
        ValueError: what the command refuses, in its words.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        chosen = [*(("--layers", *layers) if layers else ()), *(("--heads", *heads) if heads else ())]
        process = child.start(["look", what, str(model), f"--prompt={prompt}", *chosen, "--out", folder], stderr=errors)
        assert process.stdout is not None
        process.stdout.read()
        code = process.wait()
        child.end(process)
        if code != 0:
            errors.seek(0)
            raise ValueError(errors.read().strip().removeprefix("llmfast: ") or f"llmfast look ended with {code}")
        files = sorted(Path(folder).iterdir())
        return Drawn(
            {_title(file): file.read_text(encoding="utf-8") for file in files if file.suffix == ".html"},
            {_title(file): file.read_bytes() for file in files if file.suffix == ".png"},
        )


def _title(file: Path) -> str:
    return file.stem.replace("_", " ").replace("-", " ").capitalize()
