"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose: greedy when ``temperature`` is 0, else at random after the cuts.

    Raises:
        ValueError: a negative temperature, top_k below 1, or top_p outside (0, 1].
    """

    temperature: float = 0.8
    """Divides the logits: below 1 sharpens, 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020, nucleus sampling)."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Next tokens (B,) from ``logits`` (B, V).

    Raises:
        ValueError: logits that are no numbers, as those of a model that has diverged.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered_probabilities(logits, sampling)
    if not probabilities.sum().isfinite():  # asked here, since on a GPU the draw would end the process
        raise ValueError(
            "the model's logits hold NaN or infinity: it has diverged, or its weights are damaged"
        )
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) that ``sample`` draws from: temperature, then top-k, then top-p, renormalised."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A token is cut when those before it already reach top_p: the one that crosses the line stays.
        cut = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits.softmax(dim=-1)
