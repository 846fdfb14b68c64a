"""How all plots look: dark lines on white, told apart in black and white, with a background for dark pages too."""

from __future__ import annotations

from contextlib import AbstractContextManager


def in_style(*, grid: bool = True) -> AbstractContextManager[None]:
    """Within it, figures have the style of this package; without a grid for pictures and heat maps."""
    import matplotlib.style

    return matplotlib.style.context(["seaborn-v0_8-whitegrid", {"axes.grid": grid, "figure.facecolor": "white"}])
