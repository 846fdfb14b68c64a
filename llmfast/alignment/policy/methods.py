"""What tells the methods of policy optimization apart, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmfast.alignment.config import MethodName
from llmfast.alignment.losses.advantages import Baseline
from llmfast.alignment.losses.policy import Ratio
from llmfast.alignment.losses.reduce import Over


@dataclass(frozen=True)
class Method:
    """One method."""

    surrogate: Literal["clipped", "cispo", "plain"] = "clipped"
    """What has the gradient: PPO's clipped ratio, the clipped weight of CISPO, or the log-probability."""
    level: Ratio = "token"
    """What a probability ratio is of."""
    over: Over = "tokens"
    """What the loss is a mean over."""
    baseline: Baseline = "group"
    """What rewards are compared with."""
    scale: bool = False
    """Whether advantages are divided by the standard deviation of their group."""


METHODS: dict[MethodName, Method] = {
    "grpo": Method(over="sequences", scale=True),
    "dr_grpo": Method(over="constant"),
    "dapo": Method(over="tokens", scale=True),
    "gspo": Method(level="sequence", over="sequences", scale=True),
    "cispo": Method(surrogate="cispo", over="tokens", scale=True),
    "rloo": Method(surrogate="plain", over="sequences", baseline="leave_one_out"),
    "reinforce": Method(surrogate="plain", over="sequences", baseline="mean"),
}
PPO = Method(over="tokens", baseline="none")
