"""How well a model predicts each token of a text, and what it expects next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.models.decoder import Decoder
from llmfast.models.evaluating import evaluating
from llmfast.visualization.structure import batch_of, logits_of


@torch.no_grad()
def token_losses(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """The loss of each token but the first, (S − 1,) on the CPU, in nats; dropout is off meanwhile.

    A text is wholly predicted where the token that begins one stands first. A ``Decoder`` never holds the logits.

    Raises:
        ValueError: fewer than two tokens, or more than the context and one that is only predicted.
    """
    if len(tokens) < 2:
        raise ValueError("the text has fewer than two tokens, so that nothing is predicted: give a longer one")
    batch = batch_of(model, tokens[:-1])
    targets = torch.as_tensor(tokens[1:], device=batch.device)
    with evaluating(model):
        if isinstance(model, Decoder):
            losses = model(batch, of_states=lambda states: model.losses_of(states, targets[None])).result[0]
        else:
            losses = F.cross_entropy(logits_of(model, batch)[0], targets, reduction="none")
    return losses.cpu()


@torch.no_grad()
def next_tokens(model: nn.Module, tokens: Sequence[int], count: int = 20) -> tuple[Tensor, Tensor]:
    """The likeliest tokens after a prompt, (count,) int64, and their probabilities, (count,), the likeliest
    first; at temperature 1, before any setting of generation. Dropout is off meanwhile.

    Raises:
        ValueError: no tokens, more than the context, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    with evaluating(model):
        probabilities = logits_of(model, batch_of(model, tokens))[0, -1].softmax(-1)
    best, places = probabilities.topk(min(count, len(probabilities)))
    return places.cpu(), best.cpu()
