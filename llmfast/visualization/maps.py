"""What can be looked at of the attention of a prompt: a picture of each head, and the strongest weights of tokens."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.visualization import pages
from llmfast.visualization.attention import Rows, attention_rows
from llmfast.visualization.structure import chosen, shape_of
from llmfast.visualization.style import heat_map, in_style, plain, save_figure

MOST_CELLS = 192
"""Sides of a picture; those of a longer prompt show the largest weight of each square of tokens."""
MOST_ENTRIES = 2**20
"""Weights that the page holds (12 MB in the file); of a longer prompt, only the strongest of each token."""
MOST_NAMED = 32
"""Tokens up to which a picture names them."""


@dataclass(frozen=True)
class AttentionMaps:
    """What is kept of the attention of a prompt."""

    layers: list[int]
    heads: list[int]
    pictures: Tensor
    """(layers, heads, cells, cells) float32: the largest weight of the tokens of each cell, by row and key."""
    keys: Tensor
    """(layers, heads, S, kept) int32: the keys that each token looks at most, the strongest first."""
    weights: Tensor
    """(layers, heads, S, kept) float32: their weights; all of the token's weights where ``kept`` is S."""


def attention_maps(
    model: nn.Module, tokens: Sequence[int], *, layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> AttentionMaps:
    """The attention of chosen layers and heads over a prompt; all if left out.

    Memory is proportional to the length of the prompt for a ``Decoder``.

    Raises:
        ValueError: as ``attention_rows``.
    """
    shape, length = shape_of(model), len(tokens)
    layers, heads = chosen("layers", layers, shape.layers), chosen("heads", heads, shape.heads)
    count = (len(layers), len(heads))
    side = max(1, math.ceil(length / MOST_CELLS))
    cells = math.ceil(length / side)
    kept = min(length, max(1, MOST_ENTRIES // max(1, len(layers) * len(heads) * length)))
    maps = AttentionMaps(
        layers,
        heads,
        torch.zeros(*count, cells, cells),
        torch.zeros(*count, length, kept, dtype=torch.int32),
        torch.zeros(*count, length, kept),
    )
    for rows in attention_rows(model, tokens, layers=layers, heads=heads):
        _keep(maps, layers.index(rows.layer), rows, side)
    return maps


def _keep(maps: AttentionMaps, place: int, rows: Rows, side: int) -> None:
    weights = rows.weights.float().cpu()
    _, count, width = weights.shape
    strongest, at = weights.topk(min(width, maps.keys.shape[-1]), dim=-1)
    here = slice(rows.first_row, rows.first_row + count)
    maps.weights[place, :, here, : strongest.shape[-1]] = strongest
    maps.keys[place, :, here, : strongest.shape[-1]] = (at + rows.first_key).int()
    largest = _by_cells(_by_cells(weights, rows.first_key, side).mT, rows.first_row, side).mT
    row, column = rows.first_row // side, rows.first_key // side
    part = maps.pictures[place, :, row : row + largest.shape[1], column : column + largest.shape[2]]
    part.copy_(torch.maximum(part, largest))


def _by_cells(weights: Tensor, first: int, side: int) -> Tensor:
    """The largest of the last dimension, which begins at ``first``, in each cell of ``side`` that it touches."""
    before = first % side
    padded = F.pad(weights, (before, -(before + weights.shape[-1]) % side))
    return padded.unflatten(-1, (-1, side)).amax(-1)


def plot_attention(maps: AttentionMaps, texts: Sequence[str], path: Path) -> None:
    """Draw a grid of pictures as a PNG or SVG file: a row for each layer, a column for each head.

    In a picture, a row is the token that looks and a column the token that it looks at. Shades are the square root of
    the weights, so that small ones are visible.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    lines, columns = len(maps.layers), len(maps.heads)
    named = len(texts) <= MOST_NAMED and lines * columns <= 4
    size = max(2.6, 0.26 * len(texts) + 1.2) if named else max(0.7, min(2.4, 24 / max(lines, columns)))
    shown = [plain(text) for text in texts]
    with in_style(grid=False):
        figure = Figure(figsize=(columns * size + 1.1, lines * size + 1.0), dpi=120, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for line, layer in enumerate(maps.layers):
            for column, head in enumerate(maps.heads):
                axes = grid[line, column]
                image = heat_map(axes, maps.pictures[line, column].numpy(), norm=PowerNorm(0.5, 0, 1))
                axes.set_aspect("equal")
                axes.set_xticks([]), axes.set_yticks([])
                if named:
                    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=8)
                    axes.set_yticks(range(len(shown)), shown, fontsize=8)
                if line == 0 or named:
                    axes.set_title(f"layer {layer}, head {head}" if named else f"head {head}", fontsize=9)
                if column == 0 and not named:
                    axes.set_ylabel(f"layer {layer}", fontsize=9)
        # A bar of one height, however tall the grid is.
        bar = figure.colorbar(
            image, ax=grid, ticks=[0, 0.05, 0.25, 0.5, 1], aspect=30, shrink=min(1, 4 / (lines * size))
        )
        bar.set_label("attention weight")
        figure.supxlabel("token that is looked at", fontsize=9)
        figure.supylabel("token that looks", fontsize=9)
        save_figure(figure, path)


def write_page(maps: AttentionMaps, texts: Sequence[str], path: Path, *, title: str = "Attention") -> None:
    """Write the interactive page: one HTML file that needs nothing else, no network either.

    Pointing at a token shows what it looks at, a click pins it; arrow keys, Enter and Escape do the same.
    """
    data = {
        "title": title,
        "texts": list(texts),
        "layers": maps.layers,
        "heads": maps.heads,
        "kept": maps.keys.shape[-1],
        "keys": _base64(maps.keys, "<i4"),
        "weights": _base64(maps.weights, "<f4"),
    }
    pages.write_page("attention.html", data, path)


def _base64(tensor: Tensor, dtype: str) -> str:
    return base64.b64encode(tensor.contiguous().numpy().astype(dtype).tobytes()).decode("ascii")


def visible_text(token: bytes) -> str:
    """The text of a token, with what cannot be seen written out: \\n, \\t, and bytes that are no whole character.

    >>> visible_text(b" a\\n")
    ' a\\\\n'
    >>> visible_text(b"\\xe9\\x9b")
    '\\\\xe9\\\\x9b'
    """
    text = token.decode("utf-8", errors="backslashreplace")
    escapes = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(c if c.isprintable() else escapes.get(c, f"\\u{ord(c):04x}") for c in text)
