"""The loss of a policy on its rollouts, with what people watch of it."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmfast.alignment.config import PolicyConfig
from llmfast.alignment.losses.entropy import entropies
from llmfast.alignment.losses.kl import kl_loss
from llmfast.alignment.losses.policy import Clipped, cispo, clipped, importance, reinforce, value_loss
from llmfast.alignment.losses.reduce import masked_mean, masked_sum, row_losses, row_weights
from llmfast.alignment.policy.log_probabilities import token_log_probabilities
from llmfast.alignment.policy.methods import Method
from llmfast.data.batch import Batch
from llmfast.inference.config import Sampling
from llmfast.kernels import batch_invariant
from llmfast.models.decoder import Decoder
from llmfast.models.value_head import values_of
from llmfast.training.objective import Figure, Loss, Maximum, Objective, Ratio, balancing_parts


class _Forward(NamedTuple):
    log_probabilities: Tensor
    entropies: Tensor | None
    values: Tensor | None


class PolicyObjective(Objective):
    """The loss of sampled answers (``RolloutSource``), divided by what the method counts.

    Columns of a batch: ``tokens``, ``targets``, ``is_real`` and ``old`` as ``rollout_columns`` has them; ``counted``
    (B, S) bool, the sampled tokens that take part; ``advantages`` (B, S); ``fresh`` (B,), 1 where the policy is still
    the one that sampled; per answer ``reward``, ``length``, ``is_truncated``, ``is_equal``; where they are needed,
    ``reference`` (B, S), ``importance`` (B, S), ``returns`` and ``old_values`` (B, S).
    """

    model: Decoder

    def __init__(self, model: Decoder, config: PolicyConfig, method: Method, sampling: Sampling):
        super().__init__(model)
        self.config, self.method, self.sampling = config, method, sampling

    def weight(self, batch: Batch) -> Tensor:
        return row_weights(batch.counted, self.method.over).sum()

    def is_spike(self, loss: float, usual: float, factor: float) -> bool:
        return abs(loss) > factor * max(abs(usual), 1e-3)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        return batch_invariant(self.model) if self.config.rollouts.batch_invariant else contextlib.nullcontext()

    def forward(self, batch: Batch) -> Loss:
        (new, entropy, values), balancing = self.model(
            batch.tokens, is_real=batch.is_real, of_states=lambda states: self._forward(states, batch)
        )
        counted, config = batch.counted, self.config
        log_ratios = torch.where(counted, new - batch.old, 0)
        found = self._surrogate(new, log_ratios, batch)
        losses = found.losses
        if "importance" in batch.columns:
            losses = losses * batch.importance
        figures = self._figures(batch, new.detach(), log_ratios.detach(), found.is_clipped)
        if config.kl and config.kl_in == "loss":
            kl = kl_loss(new, batch.reference, config.kl_estimator)
            losses = losses + config.kl * kl
        if entropy is not None:
            losses = losses - config.entropy * entropy
            figures["entropy"] = _mean(entropy.detach(), counted)
        if values is not None:
            value = value_loss(values, batch.returns, batch.old_values, config.value_clip)
            losses = losses + config.value_weight * value
            figures["value_loss"] = _mean(value.detach(), counted)
        losses = losses.expand_as(new)
        rows = row_losses(losses, counted, self.method.over, length=config.rollouts.max_tokens)
        loss = rows.sum() / self.weight(batch).clamp(min=1)
        return Loss(loss, figures, balancing_parts(balancing))

    def _forward(self, states: Tensor, batch: Batch) -> _Forward:
        model, config = self.model, self.config
        return _Forward(
            token_log_probabilities(model, states, batch.targets, self.sampling),
            entropies(states, self._logits, batch.counted) if config.entropy else None,
            values_of(model, states) if "returns" in batch.columns else None,
        )

    def _logits(self, rows: Tensor) -> Tensor:
        return self.model.logits_of(rows) / self.sampling.temperature

    def _surrogate(self, new: Tensor, log_ratios: Tensor, batch: Batch) -> Clipped:
        method, config = self.method, self.config
        if method.surrogate == "plain":
            return Clipped(reinforce(new, batch.advantages), torch.zeros_like(batch.counted))
        if method.surrogate == "cispo":
            return cispo(new, log_ratios, batch.advantages, high=config.clip_high)
        advantages = batch.advantages
        if method.level == "sequence":  # all tokens of an answer have its advantage
            advantages = masked_mean(advantages, batch.counted, dim=1).unsqueeze(1)
        return clipped(
            importance(log_ratios, batch.counted, method.level),
            advantages,
            low=config.clip_low,
            high=config.clip_high,
            dual=config.clip_dual,
        )

    def _figures(self, batch: Batch, new: Tensor, log_ratios: Tensor, is_clipped: Tensor) -> dict[str, Figure]:
        counted = batch.counted
        rows = torch.tensor(float(batch.rows), device=counted.device)
        sampled = batch.targets != -100
        gap = torch.where(sampled & batch.fresh.bool()[:, None], (new - batch.old).abs(), 0)
        figures: dict[str, Figure] = {
            "reward": Ratio(batch.reward.sum(), rows),
            "length": Ratio(batch.length.sum(), rows),
            "truncated": Ratio(batch.is_truncated.sum(), rows),
            "no_signal": Ratio(batch.is_equal.sum(), rows),
            "negative_log_probability": _mean(-new, counted),
            "clipped": _mean(is_clipped.expand_as(counted).float(), counted),
            "policy_kl": _mean(torch.expm1(log_ratios) - log_ratios, counted),
            "sampler_gap": Maximum(gap.max()),
        }
        if "reference" in batch.columns:
            figures["kl"] = _mean(new - batch.reference, counted)
        return figures


def _mean(values: Tensor, counted: Tensor) -> Ratio:
    """A mean over the tokens that count, whatever the loss is a mean over."""
    return Ratio(masked_sum(values, counted), counted.sum())
