"""Estimates of KL(π ‖ π₀) from sampled tokens, for rewards and for losses.

With d = log π(a) − log π₀(a) of a token a ~ π (Schulman 2020): k1 = d, k2 = d²/2, k3 = e^(−d) − 1 + d. k1 and k3 have
the KL as their mean, k3 is never negative and varies less, k2 is biased.

Differentiated, they change places: the mean of ∇k2 is the gradient of the KL; that of ∇k1 is 0, and that of ∇k3 is
the gradient of KL(π₀ ‖ π), another divergence (arXiv:2506.09477). So ``kl_loss`` has the value of the estimate that is
asked for and always the gradient of k2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
FARTHEST = 60.0  # beyond it k3's exponential says no more than that the policies share nothing


def kl_estimate(policy: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """The estimate of each token's KL from the log-probabilities of the policy that sampled it and of the reference.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), "k1")
    tensor([0.5000])
    """
    d = policy - reference
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    return torch.expm1(-d.clamp(min=-FARTHEST)) + d


def kl_loss(policy: Tensor, reference: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Each token's KL penalty: the value of ``kl_estimate``, the gradient of the KL.

    Its mean over tokens sampled from the policy has the gradient of KL(π ‖ π₀) of each next-token distribution.
    """
    carrier = kl_estimate(policy, reference, "k2")
    return carrier + (kl_estimate(policy, reference, estimator) - carrier).detach()
