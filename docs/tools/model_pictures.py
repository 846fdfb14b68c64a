"""Draws the pictures of docs/guides/look.md from a trained run: ``python -m docs.tools.model_pictures RUN`` at the
repository root."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.reporting.charts import CHARTS
from llmfast.commands.look.lens import lens
from llmfast.commands.look.parts import ablate, norms
from llmfast.visualization.style import THEMES, in_theme

PROMPT = "It was the best of times, it was the worst of times, it was the age of"
PICTURES = ("lens", "ablation", "norms")


def draw(run: Path, out: Path = CHARTS) -> None:
    """Draw every picture in both themes."""
    for theme in THEMES:
        with in_theme(theme), tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder)
            lens(run, PROMPT, out=drawn)
            ablate(run, PROMPT, out=drawn)
            norms(run, PROMPT, out=drawn)
            for name in PICTURES:
                (drawn / f"{name}.png").rename(out / f"look-{name}-{theme}.png")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
