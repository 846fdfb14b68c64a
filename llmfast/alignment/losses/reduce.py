"""Sums and means over the tokens that count, and by what a policy's loss is divided."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Over = Literal["tokens", "sequences", "constant"]
"""What a policy's loss is a mean over. tokens: all tokens of all sequences alike (DAPO); sequences: the mean of each
sequence's own mean (GRPO), in which a token of a long answer counts less; constant: each sequence's sum over a fixed
length (Dr. GRPO), in which no token counts less because its answer is long."""


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The sum of ``values`` where ``mask`` is true, over ``dim`` or over everything.

    What ``values`` holds elsewhere does not matter, NaN and infinity included.
    """
    kept = torch.where(mask.bool(), values, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean of ``values`` where ``mask`` is true; 0 where it is true nowhere.

    >>> masked_mean(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]), dim=1)
    tensor([2., 5.])
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_normalize(values: Tensor, mask: Tensor, constant: float, dim: int | None = None) -> Tensor:
    """The sum of ``values`` where ``mask`` is true, divided by ``constant`` whatever their number."""
    return masked_sum(values, mask, dim) / constant


def row_losses(losses: Tensor, mask: Tensor, over: Over, *, length: int | None = None) -> Tensor:
    """Each sequence's part (B,) of a loss that is ``row_losses(...).sum() / row_weights(...).sum()``.

    Args:
        losses: (B, S), of each token.
        mask: (B, S), true for the tokens that count.
        over: what the loss is a mean over, see ``Over``.
        length: the fixed length of ``constant``.

    Raises:
        ValueError: ``constant`` without a positive length.
    """
    sums = masked_sum(losses, mask, dim=1)
    if over == "tokens":
        return sums
    if over == "sequences":
        return sums / mask.sum(1).clamp(min=1)
    if length is None or length < 1:
        raise ValueError(f'over="constant" needs a length of at least 1, got {length}')
    return sums / length


def row_weights(mask: Tensor, over: Over) -> Tensor:
    """What each sequence (B,) counts in the denominator: its tokens, or 1, or 0 where no token of it counts."""
    counted = mask.sum(1)
    return counted if over == "tokens" else (counted > 0).to(counted.dtype)
