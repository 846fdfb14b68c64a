"""What training says of sampled tokens: their log-probabilities in the distribution that they were drawn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmfast.data.batch import IGNORED
from llmfast.inference.config import Sampling
from llmfast.inference.distribution import distribution, log_probs
from llmfast.models.decoder import Decoder

ROWS = 1024  # tokens whose logits exist at a time, where a temperature or cuts need them


def is_plain(sampling: Sampling) -> bool:
    """Whether tokens are drawn from the model's own distribution."""
    return sampling.temperature == 1 and sampling.top_k is None and sampling.top_p in (None, 1) and not sampling.min_p


def token_log_probabilities(decoder: Decoder, states: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities (B, S), float32, of ``targets`` (B, S) after last hidden states (B, S, E); 0 where ignored.

    They are those of the distribution that ``sampling`` draws from, as the engine computes them: in float32 and
    batch-invariant mode to the bit. With a temperature or cuts, logits exist for some tokens at a time, and are
    computed again in the backward pass. A cut depends on the present logits, but always keeps the target: once the
    policy has changed, a token that was drawn stays possible.
    """
    if is_plain(sampling):
        return -decoder.losses_of(states, targets).float()
    counted = targets != IGNORED
    rows, wanted = states[counted], targets[counted]

    def of_rows(some: Tensor, tokens: Tensor) -> Tensor:
        logits = decoder.logits_of(some).float()
        drawn_from = distribution(logits, sampling)
        is_target = torch.zeros_like(drawn_from, dtype=torch.bool).scatter(-1, tokens[:, None], True)
        tempered = logits / sampling.temperature if sampling.temperature != 1 else logits
        return log_probs(torch.where(is_target, tempered, drawn_from), tokens)

    parts = [
        checkpoint(of_rows, some, tokens, use_reentrant=False)
        for some, tokens in zip(rows.split(ROWS), wanted.split(ROWS), strict=True)
    ]
    found = torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.float32)
    return torch.zeros(targets.shape, device=states.device).masked_scatter(counted, found)
