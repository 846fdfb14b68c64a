"""Draws the pictures of docs/guides/look.md and evaluation.md from trained runs, of which the first is looked into:
``python -m docs.tools.model_pictures RUN...`` at the repository root."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.reporting.charts import CHARTS
from llmfast.commands.compare import compare
from llmfast.commands.look.lens import lens, next_token
from llmfast.commands.look.parts import ablate, norms
from llmfast.visualization.style import THEMES, in_theme

PROMPT = "It was the best of times, it was the worst of times, it was the age of"
PICTURES = ("lens", "next", "ablation", "norms")


def draw(runs: list[Path], out: Path = CHARTS) -> None:
    """Draw every picture in both themes."""
    for theme in THEMES:
        with in_theme(theme), tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder)
            lens(runs[0], PROMPT, out=drawn)
            next_token(runs[0], PROMPT, count=10, out=drawn)
            ablate(runs[0], PROMPT, out=drawn)
            norms(runs[0], PROMPT, out=drawn)
            for name in PICTURES:
                (drawn / f"{name}.png").rename(out / f"look-{name}-{theme}.png")
            compare(tuple(runs), out=drawn)
            (drawn / "losses.png").rename(out / f"compare-losses-{theme}.png")


if __name__ == "__main__":
    draw([Path(each) for each in sys.argv[1:]])
