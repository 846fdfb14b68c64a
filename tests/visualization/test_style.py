"""Plots have one style: it can be read in black and white, and on light and dark pages."""

import numpy as np
import pytest

from llmfast.visualization.classification import plot_confusion
from llmfast.visualization.curves import plot_losses, plot_sweep
from llmfast.visualization.plots.comparison import plot_bars, plot_run_losses
from llmfast.visualization.style import THEMES, heat_map, in_style, in_theme, ink_on, theme

LOG = [
    {"step": step, "loss": 3.0 / step, "learning_rate": 1e-3, "matrix_learning_rate": 0.02, "gradient_norm": 1.0}
    for step in range(1, 6)
] + [{"step": 5, "validation_loss": 1.0, "expert_max_violation": 0.5}]
PICTURES = {
    "losses": lambda file: plot_losses(LOG, file),
    "runs": lambda file: plot_run_losses({"a": LOG, "b": LOG, "no log": []}, file),
    "bars": lambda file: plot_bars({"loss": {"a": 1.0, "b": None}, "memory": {"a": 3.0}}, file),
    "confusion": lambda file: plot_confusion(["$x$", "b"], np.array([[3, 1], [0, 2]]), file),
}


def luminance(color):
    from matplotlib.colors import to_rgb

    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", THEMES)
def test_text_and_lines_stand_out_from_the_paper(name):
    """WCAG: 4.5 for text, 3 for lines."""
    colors = THEMES[name]
    assert min(contrast(each, colors.paper) for each in (colors.text, colors.muted)) >= 4.5
    assert min(contrast(each, colors.paper) for each in (*colors.lines, colors.accent, colors.warn)) >= 3


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", THEMES)
def test_every_plot_has_the_paper_of_its_theme(picture, name, tmp_path):
    from matplotlib.colors import to_hex
    from matplotlib.image import imread

    file = tmp_path / "picture.png"
    with in_theme(name):
        PICTURES[picture](file)
    assert to_hex(imread(file)[0, 0, :3]) == THEMES[name].paper
    assert theme() is THEMES["light"]


def test_lines_differ_without_colors():
    from matplotlib.figure import Figure

    with in_style():
        axes = Figure().subplots()
        lines = [axes.plot([0, 1])[0] for _ in range(36)]
    looks = [(line.get_color(), line.get_linestyle(), line._unscaled_dash_pattern) for line in lines]
    assert len(set(map(str, looks))) == 36
    assert len({str(look[1:]) for look in looks[:6]}) == 6


def test_what_is_below_zero_has_a_sign():
    """Trap: both ends of a map of two colors look the same in black and white."""
    from matplotlib.figure import Figure

    with in_style(grid=False):
        axes = Figure().subplots()
        heat_map(axes, np.array([[1.0, -1.0, 0.0, -0.05]] * 20), signed=True)
        assert [text.get_text() for text in axes.texts] == ["−"] * 20
        axes = Figure().subplots()
        heat_map(axes, np.array([[0.5, -0.25]]), signed=True, numbers="+.2f")
        assert [text.get_text() for text in axes.texts] == ["+0.50", "−0.25"]
    assert (ink_on((1, 1, 1, 1)), ink_on((0, 0, 0.4, 1))) == ("black", "white")


def test_a_picture_may_be_svg(tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        PICTURES["bars"](file)
    assert b"<svg" in files[0].read_bytes()
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sweep_has_a_picture_of_the_losses_and_one_of_each_setting(tmp_path):
    results = [({"training.learning_rate": rate, "model.width": 8}, loss) for rate, loss in ((1e-3, 2.0), (1e-2, 1.0))]
    files = plot_sweep({"a": LOG, "b": LOG}, results, tmp_path)
    assert {each.name for each in files} == {"losses.png", "learning_rate.png", "width.png"}
