"""Log-probabilities of answers, from the losses of their tokens: no logits are held."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.data.batch import IGNORED, Batch
from llmfast.data.packing import pack_rows
from llmfast.models.experts import Balancing


class AnswerLogProbabilities(NamedTuple):
    """Of the answers of a batch of pairs."""

    sums: Tensor
    """(B, sides): the log-probability of each whole answer, float32."""
    balancing: Balancing | None
    """What a mixture of experts adds to the loss while training; None otherwise."""


def answer_log_probabilities(model: nn.Module, batch: Batch) -> AnswerLogProbabilities:
    """What a decoder thinks of every side of the pairs in a batch of a ``PairSplit``, without padding."""
    tokens, targets, is_real = (column.flatten(0, 1) for column in (batch.tokens, batch.targets, batch.is_real))
    packed = pack_rows(is_real)
    targets = targets.take(packed.places).masked_fill(~packed.is_real, IGNORED)
    losses, balancing = model(
        tokens.take(packed.places),
        cu_seqlens=packed.cu_seqlens,
        is_real=packed.is_real,
        of_states=lambda states: model.losses_of(states, targets),
    )
    losses = torch.where(is_real, losses.float().take(packed.back), 0)
    return AnswerLogProbabilities(-losses.sum(-1).view(batch.tokens.shape[:2]), balancing)


def answer_lengths(batch: Batch) -> Tensor:
    """(B, sides): how many tokens each answer has, its end included."""
    return (batch.targets != IGNORED).sum(-1)
