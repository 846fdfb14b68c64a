"""The entropy of next-token distributions, whose logits are never held for all tokens at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 1024  # tokens whose logits exist at a time


def entropies(states: Tensor, logits_of: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The entropy of each token's distribution (B, S), in nats; 0 where ``mask`` is false.

    Logits are computed for some tokens at a time, and again in the backward pass.

    Args:
        states: (B, S, E), last hidden states.
        logits_of: gives the logits (N, V) of states (N, E).
        mask: (B, S), true for the tokens that are asked for.
    """
    counted = mask.bool()
    rows = states[counted]
    parts = [checkpoint(_entropy, part, logits_of, use_reentrant=False) for part in rows.split(ROWS)]
    found = torch.cat(parts) if parts else rows.new_zeros(0)
    return torch.zeros(mask.shape, dtype=found.dtype, device=states.device).masked_scatter(counted, found)


def _entropy(rows: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    log_p = logits_of(rows).float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
