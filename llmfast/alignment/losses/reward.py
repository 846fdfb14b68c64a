"""Losses of reward models: of pairs of answers, and of the steps of one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(r⁺ − r⁻ − m) of each pair (B,): the Bradley-Terry model (Ouyang et al. 2022, equation 1).

    ``margin`` m says by how much the rewards should differ (Llama 2, arXiv:2307.09288, equation 2).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r⁺ + r⁻)² of each pair (B,), which keeps rewards around 0 (arXiv:2312.09244, equation 2)."""
    return (chosen + rejected).square()


def process(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each step's label: a process reward model (arXiv:2305.20050).

    Args:
        logits: of the places where steps end, any shape.
        labels: 1 for a right step, 0 for a wrong one, or a probability; the same shape.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
