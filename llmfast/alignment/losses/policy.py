"""Losses of policy optimization, of each sampled token: REINFORCE, PPO's clipping and its relatives.

With r = π(a|s)/π_old(a|s) the importance ratio of a token, given as its logarithm, and A its advantage. What they are
divided by is decided by ``reduce``. All shapes are (B, S), or (B, 1) where something is the same for a whole answer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmfast.alignment.losses.reduce import masked_mean

Ratio = Literal["token", "sequence"]


class Clipped(NamedTuple):
    """The loss of each token, and where clipping has taken the gradient away."""

    losses: Tensor
    is_clipped: Tensor


def reinforce(log_probabilities: Tensor, advantages: Tensor) -> Tensor:
    """−A·log π(a|s) (Williams 1992); with leave-one-out advantages, RLOO (arXiv:2402.14740)."""
    return -advantages * log_probabilities


def importance(log_ratios: Tensor, mask: Tensor, level: Ratio = "token") -> Tensor:
    """Log importance ratios: of each token, or their mean over the answer, (B, 1) (GSPO, arXiv:2507.18071, eq. 7)."""
    return log_ratios if level == "token" else masked_mean(log_ratios, mask, dim=1).unsqueeze(1)


def clipped(
    log_ratios: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2, dual: float | None = None
) -> Clipped:
    """PPO's −min(r·A, clip(r, 1 − low, 1 + high)·A) (arXiv:1707.06347, equation 7).

    GRPO with its group advantages (arXiv:2402.03300), DAPO with ``high`` above ``low`` (arXiv:2503.14476), GSPO with
    the ratio of whole answers (``importance``).

    Args:
        log_ratios: log r.
        advantages: A.
        low, high: how far r may fall and rise before the gradient ends.
        dual: c > 1: where A < 0 the loss is at most −c·A, however large r is (arXiv:1912.09729, equation 5).
    """
    ratios = log_ratios.exp()
    bounded = ratios.clamp(1 - low, 1 + high)
    surrogate = torch.minimum(ratios * advantages, bounded * advantages)
    is_clipped = ((advantages < 0) & (ratios < 1 - low)) | ((advantages > 0) & (ratios > 1 + high))
    if dual is not None:
        floor = dual * advantages
        is_below = (advantages < 0) & (surrogate < floor)
        surrogate = torch.where(is_below, floor, surrogate)
        is_clipped = is_clipped | is_below
    return Clipped(-surrogate, is_clipped)


def cispo(
    log_probabilities: Tensor,
    log_ratios: Tensor,
    advantages: Tensor,
    *,
    low: float | None = None,
    high: float = 0.2,
) -> Clipped:
    """−sg(clip(r, 1 − low, 1 + high))·A·log π: the weight is clipped, and no token loses its gradient.

    MiniMax-M1 (arXiv:2506.13585, equation 4), which has no lower bound.
    """
    ratios = log_ratios.detach().exp()
    weights = ratios.clamp(0.0 if low is None else 1 - low, 1 + high)
    return Clipped(-weights * advantages * log_probabilities, weights != ratios)


def truncated_importance(trainer: Tensor, sampler: Tensor, cap: float) -> Tensor:
    """min(π_trainer/π_sampler, cap) without gradient: corrects a sampler that computes other probabilities.

    Args:
        trainer: log-probabilities that the trainer has of the tokens, before the update.
        sampler: those that they were drawn with.
        cap: the largest weight (truncated importance sampling; Yao et al. 2025).
    """
    return (trainer - sampler).detach().exp().clamp(max=cap)


def value_loss(values: Tensor, returns: Tensor, old_values: Tensor | None = None, clip: float | None = None) -> Tensor:
    """½(V − R)²; with ``clip``, the larger of that and ½(V_old + clip(V − V_old) − R)² (PPO2's form).

    Args:
        values: V of each token (B, S).
        returns: R, what V should be.
        old_values: V before the updates; with ``clip``.
        clip: how far V may move from them.
    """
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain
    assert old_values is not None, "clipping needs the old values"
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (near - returns).square())
