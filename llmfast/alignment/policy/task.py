"""The tasks of policy optimization: by comparing answers to the same prompt (GRPO), or with a value function (PPO)."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmfast.alignment.config import GroupPolicyConfig, PolicyConfig, ValuePolicyConfig
from llmfast.alignment.losses.advantages import generalized_advantages, group_advantages, whitened
from llmfast.alignment.losses.kl import kl_estimate
from llmfast.alignment.losses.policy import truncated_importance
from llmfast.alignment.policy.methods import METHODS, PPO, Method
from llmfast.alignment.policy.objective import PolicyObjective
from llmfast.alignment.policy.source import Columns, RolloutSource, evaluated, sampling_of
from llmfast.alignment.reference import without_adapter
from llmfast.alignment.rewards.build import Rewards
from llmfast.alignment.rollouts.sample import check_sampling
from llmfast.data.batch import IGNORED
from llmfast.data.examples.prompts import PreparedPrompts, describe_prompts, open_prompts, prepare_prompts
from llmfast.data.shards import Share
from llmfast.finetuning.chat_task import ChatTask
from llmfast.integrations.opening import open_start
from llmfast.models.decoder import Decoder
from llmfast.models.value_head import add_value_head
from llmfast.training.task import Policy, Report

PART_PROMPTS = 64  # of the validation split, for evaluations during training


class PolicyTask(ChatTask):
    """Those parts of a task on sampled answers that do not depend on how advantages come about."""

    config: PolicyConfig
    prepared: PreparedPrompts
    method: Method
    has_values: ClassVar[bool] = False

    @classmethod
    def prepare_data(cls, config: PolicyConfig, folder: Path, report: Report) -> None:
        if config.start is None:
            raise ValueError(f"{cls.command} needs start: a model that answers, to begin from")
        Rewards(config.rewards)
        check_sampling(sampling_of(config))
        if config.data.max_tokens is None:
            config.data.max_tokens = open_start(config.start).config.context
        longest = config.data.max_tokens - config.rollouts.max_tokens
        if longest < 1:
            raise ValueError(
                f"rollouts.max_tokens {config.rollouts.max_tokens} leaves no room for a prompt in data.max_tokens "
                f"{config.data.max_tokens}"
            )
        prepare_prompts(config.data, folder, longest=longest, report=report)

    @classmethod
    def open_data(cls, config: PolicyConfig, folder: Path, verify: bool) -> PreparedPrompts:
        return open_prompts(folder)

    @classmethod
    def describe_data(cls, prepared: PreparedPrompts, report: Report) -> None:
        describe_prompts(prepared, report)

    @classmethod
    def keeps_start(cls, config: PolicyConfig) -> bool:
        return config.kl > 0 and config.reference == "copy"

    def objective(self) -> PolicyObjective:
        decoder = self.start_decoder()
        if self.has_values:
            add_value_head(decoder)
        return PolicyObjective(decoder, self.config, self.method, sampling_of(self.config))

    def source(self, share: Share, policy: Policy) -> RolloutSource:
        self.rollouts = RolloutSource(
            self.config,
            self.prepared,
            share,
            policy,
            advantages=self.advantages,
            reference=self._reference(policy) if self.config.kl else None,
            has_values=self.has_values,
        )
        return self.rollouts

    def _reference(self, policy: Policy) -> Callable[[], contextlib.AbstractContextManager[Decoder]]:
        """Gives the model that the run started with, for a ``with`` block."""
        if self.config.reference == "copy":
            copy = self.start_decoder().to(policy.device).eval().requires_grad_(False)
            return lambda: contextlib.nullcontext(copy)

        @contextlib.contextmanager
        def plain() -> Iterator[Any]:
            with policy.inference() as model, without_adapter(model):
                yield model

        return plain

    @abc.abstractmethod
    def advantages(self, columns: Columns) -> Columns:
        """Adds the columns that the loss needs to those of all answers of a sampling."""

    def counted(self, columns: Columns) -> Tensor:
        """(B, S) bool: the sampled tokens that take part in the loss."""
        is_left_out = columns["is_skipped"].bool()
        if self.config.truncated == "drop":
            is_left_out = is_left_out | columns["is_truncated"].bool()
        return (columns["targets"] != IGNORED) & ~is_left_out[:, None]

    def with_corrections(self, columns: Columns) -> Columns:
        """Replaces sampled log-probabilities by those of training, and weighs tokens by their ratio, if asked for."""
        if self.config.importance_cap is None:
            return columns
        trainer = columns.pop("trainer")
        weights = truncated_importance(trainer, columns["old"], self.config.importance_cap)
        return columns | {"importance": weights, "old": trainer}

    def penalties(self, columns: Columns) -> Tensor | None:
        """(B, S): what the KL takes from the reward of each token; None if nothing."""
        if not self.config.kl or self.config.kl_in != "reward":
            return None
        sampled = columns["targets"] != IGNORED
        return self.config.kl * torch.where(sampled, kl_estimate(columns["old"], columns["reference"], "k1"), 0)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """The rewards of sampled answers to held-out prompts; the loss is the mean reward times −1."""
        split = self.prepared.validation
        most = PART_PROMPTS if part else len(split)
        samples = self.config.evaluation_samples
        return evaluated(self.rollouts.sample, split, policy, samples=samples, most=most)

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out prompt as the template renders it, and what the model answers."""
        return self.answer(policy, self.prepared.validation[0].tokens)


class GroupPolicy(PolicyTask):
    """GRPO and its relatives (see ``llmfast.training.task.Task``)."""

    config_class: ClassVar = GroupPolicyConfig
    command: ClassVar = "grpo"
    config: GroupPolicyConfig

    @property
    def method(self) -> Method:
        return METHODS[self.config.method]

    def advantages(self, columns: Columns) -> Columns:
        columns = self.with_corrections(columns)
        rewards, penalties = columns["reward"], self.penalties(columns)
        if penalties is not None:
            rewards = rewards - penalties.sum(1)
        samples = self.config.rollouts.samples
        advantages, is_equal = group_advantages(
            rewards, samples, baseline=self.method.baseline, scale=self.method.scale
        )
        counted = self.counted(columns)
        if self.config.equal_groups == "drop" and self.method.baseline != "mean":
            counted = counted & ~is_equal[:, None]
        return columns | {
            "counted": counted,
            "advantages": torch.where(counted, advantages[:, None], 0),
            "is_equal": is_equal.float(),
        }


class ValuePolicy(PolicyTask):
    """PPO (see ``llmfast.training.task.Task``)."""

    config_class: ClassVar = ValuePolicyConfig
    command: ClassVar = "ppo"
    config: ValuePolicyConfig
    method = PPO
    has_values = True

    def advantages(self, columns: Columns) -> Columns:
        columns = self.with_corrections(columns)
        sampled, counted = columns["targets"] != IGNORED, self.counted(columns)
        rewards = torch.zeros_like(columns["old"])
        # The reward of an answer is that of its last sampled token.
        last = sampled.shape[1] - 1 - sampled.flip(1).int().argmax(1)
        rewards[torch.arange(len(last)), last] = columns["reward"]
        if (penalties := self.penalties(columns)) is not None:
            rewards = rewards - penalties
        values = columns["old_values"]
        found = generalized_advantages(
            rewards,
            values,
            sampled,
            gamma=self.config.gamma,
            decay=self.config.gae,
            bootstrap=self._values_after(columns) if self.config.bootstrap else None,
        )
        advantages = torch.where(counted, found.advantages, 0)
        if self.config.whiten:
            advantages = whitened(advantages, counted)
        samples = self.config.rollouts.samples
        groups = columns["reward"].view(-1, samples)
        is_equal = (groups.amax(1) == groups.amin(1)).repeat_interleave(samples)
        return columns | {
            "counted": counted,
            "advantages": advantages,
            "returns": found.returns,
            "is_equal": is_equal.float(),
        }

    def _values_after(self, columns: Columns) -> Tensor:
        """(B,): what the value function says of the state after an answer that was cut short; 0 for the others."""
        rows = torch.arange(len(columns["lengths"]))
        after = columns["old_values"][rows, columns["lengths"] - 1]
        return torch.where(columns["is_truncated"].bool(), after, 0)
