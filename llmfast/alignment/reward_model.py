"""Reward models: the task of giving chosen answers more reward than rejected ones, or right steps than wrong ones."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from llmfast.alignment.config import RewardConfig
from llmfast.alignment.losses.reward import centering, pairwise
from llmfast.alignment.pairs_task import PairsTask
from llmfast.alignment.step_rewards import StepObjective, found_first_errors, judged, step_logits
from llmfast.data.batch import Batch
from llmfast.data.examples.labeled import LabeledLoader
from llmfast.data.examples.preferences import CHOSEN, REJECTED
from llmfast.data.shards import Share
from llmfast.finetuning.model import headless_flops
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.config import DecoderConfig
from llmfast.models.experts import Balancing
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.task import Policy


def rewards_of(model: SequenceClassifier, batch: Batch) -> tuple[Tensor, Balancing | None]:
    """The rewards (B, 2) of both sides of pairs, read after the last token of each answer; and the balancing losses.

    What a side's tokens leave out, the last one, which is only predicted, is put back: the reward is that of the whole
    answer, its end included.
    """
    tokens, targets, is_real = (column.flatten(0, 1) for column in (batch.tokens, batch.targets, batch.is_real))
    lengths = is_real.sum(1)
    last = targets[torch.arange(len(targets), device=targets.device), lengths - 1]
    whole = torch.cat([tokens, tokens[:, -1:]], 1).scatter(1, lengths[:, None], last[:, None])
    outputs, balancing = model(whole, lengths + 1)
    return outputs[:, 0].view(batch.tokens.shape[:2]), balancing


class RewardObjective(Objective):
    """The Bradley-Terry loss of pairs, a mean over the pairs of a batch."""

    model: SequenceClassifier

    def __init__(self, model: SequenceClassifier, *, margin: float, centering: float):
        super().__init__(model)
        self.margin, self.centering = margin, centering

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.rows, device=batch.tokens.device)

    def forward(self, batch: Batch) -> Loss:
        rewards, balancing = rewards_of(self.model, batch)
        losses, figures = compared(rewards, self.margin, self.centering)
        loss = losses.mean()
        means = {name: values.detach().mean() for name, values in figures.items()}
        return Loss(loss, means, balancing_parts(balancing))


def compared(rewards: Tensor, margin: float, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Each pair's loss, and figures of each pair, all (B,), of rewards (B, 2)."""
    chosen, rejected = rewards[:, CHOSEN], rewards[:, REJECTED]
    losses = pairwise(chosen, rejected, margin) + weight * centering(chosen, rejected)
    return losses, {
        "margin": chosen - rejected,
        "accuracy": (chosen > rejected).to(rewards.dtype),
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }


class RewardModeling(PairsTask):
    """The task on prepared pairs, or on judged answers or steps (see ``llmfast.training.task.Task``).

    What it saves is a regression classifier.

    Rows are one token shorter than the model's context: the reward is read after the last token of an answer.
    """

    config_class: ClassVar = RewardConfig
    command: ClassVar = "reward"
    config: RewardConfig

    def __init__(self, *arguments: object, **named: object):
        super().__init__(*arguments, **named)
        decoder = dataclasses.replace(self.config.model, tie_embeddings=True)
        self.classifier = ClassifierConfig(decoder, (), self.context + 1, "regression", scale=1.0)

    @classmethod
    def longest_row(cls, config: RewardConfig) -> int:
        return super().longest_row(config) - 1

    def check_context(self) -> None:
        if self.context + 1 > self.config.model.context:
            raise ValueError(
                f"data.max_tokens {self.context} leaves no place for the last token of an answer, after which a reward "
                f"is read: the model's context is {self.config.model.context}"
            )

    @property
    def decoder_config(self) -> DecoderConfig:
        return self.classifier.decoder

    @property
    def model_config(self) -> ClassifierConfig:
        return self.classifier

    def flops_per_token(self) -> float:
        return headless_flops(self.config, self.decoder_config, self.context)

    @classmethod
    def reads_steps(cls, config: RewardConfig) -> bool:
        return config.data.form != "pairs"

    def objective(self) -> RewardObjective | StepObjective:
        model = SequenceClassifier(without_head(self.start_decoder()), self.classifier)
        if self.reads_steps(self.config):
            return StepObjective(model)
        return RewardObjective(model, margin=self.config.margin, centering=self.config.centering)

    def source(self, share: Share, policy: Policy) -> LabeledLoader:
        return LabeledLoader(self.prepared.train, seed=self.config.training.seed, share=share)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """Loss and figures of held-out pairs or steps, each a mean over all of them."""
        if self.reads_steps(self.config):
            return self._evaluate_steps(policy, part)
        with policy.inference() as model:
            table = self.measured(
                lambda batch: rewards_of(model, batch)[0], self.prepared.validation, policy, width=2, part=part
            )
        losses, figures = compared(torch.from_numpy(table), self.config.margin, self.config.centering)
        return {"loss": losses.mean().item()} | {name: values.mean().item() for name, values in figures.items()}

    def _evaluate_steps(self, policy: Policy, part: bool) -> dict[str, float]:
        split = self.prepared.validation

        def measure(batch: Batch) -> Tensor:
            counts = batch.is_end.sum(1)
            is_step = torch.arange(split.most, device=counts.device) < counts[:, None]
            table = torch.zeros(batch.rows, 3, split.most, device=counts.device)
            found = step_logits(model, batch)[0], batch.labels[batch.is_end], torch.ones(int(counts.sum()))
            for column, values in enumerate(found):
                table[:, column][is_step] = values.to(table)
            return table

        with policy.inference() as model:
            table = self.measured(measure, split, policy, width=3 * split.most, part=part)
        logits, labels, is_step = torch.from_numpy(table).view(-1, 3, split.most).unbind(1)
        is_step = is_step.bool()
        losses, ratios = judged(logits[is_step], labels[is_step])
        means = {name: (each.total / each.count.clamp(min=1)).item() for name, each in ratios.items()}
        errors = found_first_errors(logits, labels, is_step).mean().item()
        return {"loss": losses.mean().item()} | means | {"first_errors_found": errors}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out prompt, and the rewards of both answers, or the probability of each step of its answer."""
        if self.reads_steps(self.config):
            return self._sample_steps(policy)
        split = self.prepared.validation
        answers = [self.tokenizer.decode(split.tokens(0, side)[1]) for side in (CHOSEN, REJECTED)]
        with policy.inference() as model:
            rewards = rewards_of(model, split.batch(np.array([0])).to(policy.device))[0][0].tolist()
        shown = [f" → {reward:+.2f} {text!r}" for reward, text in zip(rewards, answers, strict=True)]
        return self.tokenizer.decode(split.tokens(0, CHOSEN)[0]), "".join(shown)

    def _sample_steps(self, policy: Policy) -> tuple[str, str]:
        """The prompt and the first step are one text, since the data know only where steps end."""
        batch = self.prepared.validation.batch(np.array([0]))
        ends = (batch.is_end[0].nonzero().flatten() + 1).tolist()
        texts = [
            self.tokenizer.decode(batch.tokens[0, start:end].tolist()) for start, end in itertools.pairwise([0, *ends])
        ]
        with policy.inference() as model:
            chances = step_logits(model, batch.to(policy.device))[0].sigmoid().tolist()
        shown = [f"{text.rstrip()} → {chance:.0%}" for text, chance in zip(texts, chances, strict=True)]
        return shown[0], "".join(f"\n{each}" for each in shown[1:])
