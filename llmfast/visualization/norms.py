"""How large the residual stream is by layer, and the few numbers in it that are far larger than all others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ActivationNorms(NamedTuple):
    """The size of the residual stream. Row 0 is what enters the first layer, row i what leaves layer i − 1."""

    norms: Tensor
    """(layers + 1, S) float32: the Euclidean norm of each token's state."""
    largest: Tensor
    """(layers + 1, S) float32: the largest absolute value in it."""
    medians: Tensor
    """(layers + 1,) float32: the median absolute value of all tokens' states."""


class Outlier(NamedTuple):
    """One number of the residual stream."""

    row: int
    """0 for what enters the first layer, i for what leaves layer i − 1."""
    position: int
    channel: int
    value: float
    times_median: float
    """Its absolute value over the median of its row."""


def activation_norms(states: Tensor) -> ActivationNorms:
    """The size of states (layers + 1, S, E), of ``residual_stream`` for one row of its batch."""
    states = states.float()
    medians = states.abs().flatten(1).median(-1).values
    return ActivationNorms(states.norm(dim=-1).cpu(), states.abs().amax(-1).cpu(), medians.cpu())


def outliers(states: Tensor, *, times_median: float = 100.0, most: int = 20) -> list[Outlier]:
    """The numbers of states (layers + 1, S, E) that are so many times the median absolute value of their row, or
    more, the largest multiples first (massive activations, Sun et al. 2024)."""
    sizes = states.float().abs()
    medians = sizes.flatten(1).median(-1).values.clamp(min=torch.finfo(torch.float32).tiny)
    multiples = sizes / medians[:, None, None]
    best, places = multiples.flatten().topk(min(most, multiples.numel()))
    found = []
    for multiple, place in zip(best.tolist(), places.tolist(), strict=True):
        if multiple >= times_median:
            row, position, channel = (int(each) for each in torch.unravel_index(torch.tensor(place), states.shape))
            found.append(Outlier(row, position, channel, float(states[row, position, channel]), multiple))
    return found
