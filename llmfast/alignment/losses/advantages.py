"""Advantages: what a sampled answer, or a token of it, was better than expected."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmfast.alignment.losses.reduce import masked_mean

Baseline = Literal["none", "mean", "group", "leave_one_out"]


class GroupAdvantages(NamedTuple):
    """Advantages (B,) of answers in groups, and which answers say nothing because all of their group are alike."""

    advantages: Tensor
    is_equal: Tensor


def group_advantages(
    rewards: Tensor, size: int, *, baseline: Baseline = "group", scale: bool = False, eps: float = 1e-4
) -> GroupAdvantages:
    """Rewards less what answers to the same prompt got.

    Args:
        rewards: (B,), groups of ``size`` one after the other.
        size: answers per prompt.
        baseline: group, the mean of the group (GRPO); leave_one_out, the mean of the others in it (RLOO); mean, of
            all B; none.
        scale: divide by the standard deviation of the group, with ``size - 1`` in its denominator, plus ``eps`` (GRPO;
            without it, Dr. GRPO, arXiv:2503.20783).
        eps: as above.

    Raises:
        ValueError: ``size`` does not divide B, or a baseline of the group that has one answer.

    >>> group_advantages(torch.tensor([1.0, 0.0, 2.0, 2.0]), 2).advantages
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    if size < 1 or len(rewards) % size:
        raise ValueError(f"{len(rewards)} rewards cannot be divided into groups of {size}")
    if size == 1 and (scale or baseline in ("group", "leave_one_out")):
        raise ValueError(f"groups of 1 answer have no baseline {baseline!r}: sample more answers per prompt")
    groups = rewards.view(-1, size)
    mean = groups.mean(1, keepdim=True)
    found = groups
    if baseline == "group":
        found = groups - mean
    elif baseline == "leave_one_out":
        found = (groups - mean) * (size / (size - 1))
    elif baseline == "mean":
        found = groups - rewards.mean()
    is_equal = (groups.amax(1) == groups.amin(1)).unsqueeze(1).expand_as(groups)
    if baseline in ("group", "leave_one_out"):
        # Of equal rewards the mean may differ in its last bit, which a small eps would blow up.
        found = torch.where(is_equal, 0, found)
    if scale:
        found = found / (groups.std(1, keepdim=True) + eps)
    return GroupAdvantages(found.flatten(), is_equal.flatten())


class Estimated(NamedTuple):
    """Advantages and returns of tokens, both (B, S), 0 where the mask is false."""

    advantages: Tensor
    returns: Tensor
    """What the value function should say: advantages + values."""


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    decay: float = 0.95,
    bootstrap: Tensor | None = None,
) -> Estimated:
    """Generalized advantage estimation (arXiv:1506.02438, equation 16), without gradient.

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}, where t + 1 is the next token that the policy sampled: those
    in between, such as a tool's answer, are part of the state.

    Args:
        rewards: (B, S), of each token.
        values: (B, S), V of the state that each token was sampled in.
        mask: (B, S), true where the policy sampled.
        gamma: γ.
        decay: λ.
        bootstrap: (B,), V of the state after the last token, of answers that were cut short; 0 for those that ended,
            and where left out.
    """
    rewards, values = rewards.detach(), values.detach()
    following = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.detach()
    ahead = torch.zeros_like(following)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        counted = mask[:, t].bool()
        here = rewards[:, t] + gamma * following - values[:, t] + gamma * decay * ahead
        ahead = torch.where(counted, here, ahead)
        following = torch.where(counted, values[:, t], following)
        advantages[:, t] = torch.where(counted, here, 0)
    return Estimated(advantages, torch.where(mask.bool(), advantages + values, 0))


def whitened(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Values with mean 0 and variance 1 over the tokens that count, 0 elsewhere; unchanged if fewer than 2 count."""
    count = mask.sum()
    mean = masked_mean(values, mask)
    centered = torch.where(mask.bool(), values - mean, 0)
    variance = centered.square().sum() / (count - 1).clamp(min=1)
    scaled = centered * torch.rsqrt(variance + eps)
    return torch.where(count > 1, scaled, torch.where(mask.bool(), values, 0))
