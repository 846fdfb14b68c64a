"""Preference training on answers that were each judged by themselves: KTO."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfast.alignment.log_probabilities import answer_log_probabilities
from llmfast.alignment.losses.preference import PairOptions, kto_baseline, kto_judged
from llmfast.data.batch import Batch
from llmfast.models.decoder import Decoder
from llmfast.training.objective import Loss, Objective, Ratio, balancing_parts

OWN, OTHER = range(2)
"""The sides of a batch: the judged answer, and the answer to another prompt."""


class JudgedObjective(Objective):
    """KTO's loss of the answers of a ``llmfast.data.examples.judged.JudgedSplit``, a mean over those of a batch."""

    model: Decoder

    def __init__(self, model: Decoder, options: PairOptions, bad_weight: float):
        super().__init__(model)
        self.options, self.bad_weight = options, bad_weight

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.rows, device=batch.tokens.device)

    def forward(self, batch: Batch) -> Loss:
        policy, balancing = answer_log_probabilities(self.model, batch)
        losses, figures = judged(policy - batch.reference, batch.is_good, self.options, self.bad_weight)
        return Loss(losses.mean(), figures, balancing_parts(balancing))


def judged(
    log_ratios: Tensor, is_good: Tensor, options: PairOptions, bad_weight: float
) -> tuple[Tensor, dict[str, Ratio]]:
    """Each answer's loss (B,), and figures.

    Args:
        log_ratios: (B, 2), of both sides.
        is_good: (B,), of the judged answers.
        options: settings of the loss.
        bad_weight: what a bad answer counts, where a good one counts 1.
    """
    is_good = is_good.bool()
    baseline = kto_baseline(log_ratios[:, OTHER])
    own = log_ratios[:, OWN]
    losses = kto_judged(own, is_good, options, baseline=baseline) * torch.where(is_good, 1.0, bad_weight)
    rewards, ones = options.beta * own.detach(), torch.ones_like(own)
    is_right = (own.detach() > baseline) == is_good
    return losses, {
        "good_reward": Ratio(rewards[is_good].sum(), ones[is_good].sum()),
        "bad_reward": Ratio(rewards[~is_good].sum(), ones[~is_good].sum()),
        "accuracy": Ratio(is_right.to(own.dtype).sum(), ones.sum()),
    }
