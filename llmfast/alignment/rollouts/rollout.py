"""Answers sampled from the policy, token by token: what was sampled, and what was put between by a tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llmfast.data.batch import IGNORED, ROUNDED


@dataclass
class Rollout:
    """One answer to a prompt. Lists are of the tokens behind the prompt; text is only ever made from tokens."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    """True exactly where the policy sampled a token, the one that ends the answer included; false for a tool's."""
    sampling_logprobs: list[float] = field(default_factory=list)
    """In the distribution that each token was drawn from: with the temperature, and after the cuts."""
    logprobs: list[float] = field(default_factory=list)
    """By the plain model."""
    text: str = ""
    """Of the answer, without the token that ends it."""
    is_truncated: bool = False
    """Whether it met the limit of its length instead of ending."""

    @property
    def sampled(self) -> int:
        """How many tokens the policy sampled."""
        return sum(self.mask)

    def add(self, tokens: Sequence[int], sampling_logprobs: Sequence[float], logprobs: Sequence[float]) -> None:
        """Append tokens that the policy sampled."""
        self.tokens += tokens
        self.mask += [True] * len(tokens)
        self.sampling_logprobs += sampling_logprobs
        self.logprobs += logprobs

    def add_result(self, tokens: Sequence[int]) -> None:
        """Append tokens of a tool."""
        self.tokens += tokens
        self.mask += [False] * len(tokens)
        self.sampling_logprobs += [0.0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)


def rollout_columns(rollouts: Sequence[Rollout], padding: int, width: int | None = None) -> dict[str, torch.Tensor]:
    """Rows of prompts with their answers, padded at the end.

    Args:
        rollouts: B of them.
        padding: a token to fill rows up with.
        width: S; enough for the longest row, a multiple of 16, if left out.

    Returns:
        ``tokens`` (B, S) int64: prompt and answer. ``targets`` (B, S): the token that follows each, where the policy
        sampled that, and −100 elsewhere. ``is_real`` (B, S): false for padding. ``old`` (B, S) float32: the
        log-probability that each target was drawn with, 0 where there is none. ``lengths`` (B,): tokens of a row.
    """
    lengths = [len(each.prompt) + len(each.tokens) for each in rollouts]
    width = width or -(-max(lengths) // ROUNDED) * ROUNDED
    shape = (len(rollouts), width)
    tokens, targets = torch.full(shape, padding), torch.full(shape, IGNORED)
    is_real, old = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, each in enumerate(rollouts):
        start, end = len(each.prompt), lengths[row]
        tokens[row, :end] = torch.tensor(each.prompt + each.tokens)
        is_real[row, :end] = True
        sampled = torch.tensor(each.mask, dtype=torch.bool)
        answer = torch.tensor(each.tokens, dtype=torch.int64)
        targets[row, start - 1 : end - 1] = torch.where(sampled, answer, IGNORED)
        old[row, start - 1 : end - 1] = torch.tensor(each.sampling_logprobs)
    return {
        "tokens": tokens,
        "targets": targets,
        "is_real": is_real,
        "old": old,
        "lengths": torch.tensor(lengths),
    }
