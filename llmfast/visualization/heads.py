"""What each attention head does, in numbers: on a prompt, and on random tokens that are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from llmfast.visualization.attention import Rows, attention_rows
from llmfast.visualization.structure import shape_of
from llmfast.visualization.style import heat_map, in_style, save_figure, whole_numbers

ON_PROMPT = ("entropy", "mean_distance", "first_token", "previous_token")
ON_REPEATS = ("duplicate_token", "induction")
MEANING = {
    "entropy": "bits of uncertainty about where it looks",
    "mean_distance": "tokens that it looks back",
    "first_token": "weight on the first token",
    "previous_token": "weight on the token before",
    "duplicate_token": "weight on the same token earlier",
    "induction": "weight on what followed the same token earlier",
}


def prompt_scores(model: nn.Module, tokens: Sequence[int]) -> dict[str, Tensor]:
    """What every head does on a prompt: ``ON_PROMPT``, each (layers, heads) float64, means over the tokens.

    ``entropy`` is in bits; ``mean_distance`` is how many tokens back a head looks, by weight; ``first_token`` and
    ``previous_token`` are the weights on those, over all tokens but the first, which has nothing else to look at.

    Raises:
        ValueError: as ``attention_rows``; or a prompt of one token, of which nothing can be said.
    """
    if len(tokens) < 2:
        raise ValueError("the prompt has one token, which can only look at itself: give a longer text")
    shape = shape_of(model)
    sums = {name: torch.zeros(shape.layers, shape.heads, dtype=torch.float64) for name in ON_PROMPT}
    for rows in attention_rows(model, tokens):
        _add_prompt_scores(sums, rows)
    length = len(tokens)
    return {name: each / (length - 1 if name.endswith("_token") else length) for name, each in sums.items()}


def _add_prompt_scores(sums: dict[str, Tensor], rows: Rows) -> None:
    weights, layer = rows.weights.double().cpu(), rows.layer
    row, key = _places(rows)
    sums["entropy"][layer] += torch.special.entr(weights).sum((1, 2)) / torch.log(torch.tensor(2.0)).double()
    sums["mean_distance"][layer] += (weights * (row[:, None] - key).clamp(min=0)).sum((1, 2))
    sums["first_token"][layer] += (weights * ((key == 0) & (row[:, None] > 0))).sum((1, 2))
    sums["previous_token"][layer] += (weights * (key == row[:, None] - 1)).sum((1, 2))


def repeat_scores(
    model: nn.Module,
    vocabulary: Sequence[int],
    *,
    start: Sequence[int] = (),
    length: int = 32,
    texts: int = 4,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What every head does on random tokens that come twice: ``ON_REPEATS``, each (layers, heads) float64.

    In the second half, ``duplicate_token`` is the mean weight on the same token in the first, and ``induction`` that on
    the token after it (Olsson et al. 2022), which is the one to be predicted.

    Args:
        vocabulary: the tokens to draw from, none twice in a text.
        start: tokens before each text.
        length: of the part that is repeated; shorter where the context or the vocabulary is.
        texts: how many random texts to average over.
        seed: of the random texts.

    Raises:
        ValueError: the context or the vocabulary is too small for two tokens, twice.
    """
    shape = shape_of(model)
    length = min(length, len(vocabulary), ((shape.context or 2**31) - len(start)) // 2)
    if length < 2:
        raise ValueError("the model's context or vocabulary is too small for two random tokens, repeated")
    generator, ordinary = torch.Generator().manual_seed(seed), torch.as_tensor(vocabulary)
    sums = {name: torch.zeros(shape.layers, shape.heads, dtype=torch.float64) for name in ON_REPEATS}
    second = len(start) + length
    for _ in range(texts):
        drawn = ordinary[torch.randperm(len(ordinary), generator=generator)[:length]].tolist()
        for rows in attention_rows(model, [*start, *drawn, *drawn]):
            weights = rows.weights.double().cpu()
            row, key = _places(rows)
            in_second = (row >= second)[:, None]
            for name, back in (("duplicate_token", length), ("induction", length - 1)):
                sums[name][rows.layer] += (weights * (in_second & (key == row[:, None] - back))).sum((1, 2))
    return {name: each / (texts * length) for name, each in sums.items()}


def _places(rows: Rows) -> tuple[Tensor, Tensor]:
    """The positions of the rows and of the keys."""
    _, count, keys = rows.weights.shape
    return torch.arange(count) + rows.first_row, torch.arange(keys) + rows.first_key


def plot_heads(scores: dict[str, Tensor], path: Path) -> None:
    """Draw a heat map over layers and heads for each score, as a PNG or SVG file."""
    from matplotlib.figure import Figure

    layers, heads = next(iter(scores.values())).shape
    columns = 3 if len(scores) > 2 else len(scores)
    lines = -(-len(scores) // columns)
    width, height = 1.4 + min(4.0, max(2.0, 0.3 * heads)), 1.1 + min(4.0, max(1.2, 0.3 * layers))
    with in_style(grid=False) as colors:
        figure = Figure(figsize=(columns * width, lines * height), dpi=120, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes, (name, values) in zip(grid, scores.items(), strict=False):
            top = None if name in ("entropy", "mean_distance") else 1
            image = heat_map(axes, values.numpy(), limits=(0, top), numbers=".2g")
            figure.colorbar(image, ax=axes)
            axes.set_title(name.replace("_", " "), fontsize=11, pad=15)
            axes.text(0.5, 1.03, MEANING[name], transform=axes.transAxes, ha="center", fontsize=7.5, color=colors.muted)
            axes.set(xlabel="head", ylabel="layer")
            whole_numbers(axes.xaxis, axes.yaxis)
        save_figure(figure, path)
