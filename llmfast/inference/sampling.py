"""Choosing the next token from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfast.inference.config import Sampling


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Next tokens (B,) from ``logits`` (B, V).

    Raises:
        ValueError: logits that are no numbers, as those of a model that has diverged.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered_probabilities(logits, sampling)
    if not probabilities.sum().isfinite():  # asked here, since on a GPU the draw would end the process
        raise ValueError("the model's logits hold NaN or infinity: it has diverged, or its weights are damaged")
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) that ``sample`` draws from: temperature, then top-k, then top-p, renormalized."""
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
