"""What each head and each layer is worth on a text: the change of the loss without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.visualization.predictions import token_losses
from llmfast.visualization.residual import ablated
from llmfast.visualization.structure import chosen, shape_of


class Ablation(NamedTuple):
    """Mean losses in nats per token; a positive change is a loss that grows."""

    loss: float
    """Of the model as it is."""
    heads: Tensor
    """(chosen layers, chosen heads) float64: the change without one head, whose result is replaced by zeros."""
    layers: Tensor
    """(chosen layers,) float64: the change without one layer, which passes on what entered it."""


def ablate_each(
    model: nn.Module,
    tokens: Sequence[int],
    *,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Ablation:
    """The change of the loss on a text without each of the chosen heads, and without each of the chosen layers.

    One forward pass for each. The text's first token is not predicted.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers; it is as it was afterwards.
        tokens: the text.
        layers, heads: which ones, counted from 0; all if left out.
        report: called after each forward pass with how many are done, of how many.

    Raises:
        ValueError: as ``token_losses`` and ``residual.ablated``.
    """
    shape = shape_of(model)
    layers, heads = chosen("layers", layers, shape.layers), chosen("heads", heads, shape.heads)
    total = len(layers) * (len(heads) + 1)
    whole = _mean_loss(model, tokens)
    changes = torch.zeros(len(layers), len(heads) + 1, dtype=torch.float64)
    for row, layer in enumerate(layers):
        for column, head in enumerate([*heads, None]):
            without = {"layers": [layer]} if head is None else {"heads": [(layer, head)]}
            with ablated(model, **without):
                changes[row, column] = _mean_loss(model, tokens) - whole
            report(row * changes.shape[1] + column + 1, total)
    return Ablation(whole, changes[:, :-1], changes[:, -1])


def _mean_loss(model: nn.Module, tokens: Sequence[int]) -> float:
    return token_losses(model, tokens).double().mean().item()
