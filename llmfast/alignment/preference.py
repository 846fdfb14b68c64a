"""Preference training: the task of preferring chosen answers to rejected ones, mostly measured by a reference."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmfast.alignment.config import PairLossName, PreferenceConfig
from llmfast.alignment.judged import OWN, JudgedObjective, judged
from llmfast.alignment.log_probabilities import answer_lengths, answer_log_probabilities
from llmfast.alignment.losses.preference import (
    OF_THE_BATCH,
    PAIR_LOSSES,
    WITHOUT_REFERENCE,
    PairOptions,
    Pairs,
    kto,
    kto_baseline,
)
from llmfast.alignment.pairs_task import PairsTask
from llmfast.alignment.reference import (
    ReferencedPairs,
    by_copy,
    by_start,
    load_tables,
    log_probability_table,
    save_tables,
)
from llmfast.data.batch import Batch
from llmfast.data.examples.labeled import LabeledLoader
from llmfast.data.examples.preferences import CHOSEN, MISMATCHED
from llmfast.data.shards import Share
from llmfast.models.decoder import Decoder
from llmfast.training.objective import Loss, Objective, balancing_parts
from llmfast.training.task import Policy

TABLES = "reference.safetensors"


class PreferenceObjective(Objective):
    """A weighted sum of losses of pairs, a mean over the pairs of a batch."""

    model: Decoder

    def __init__(self, model: Decoder, losses: dict[PairLossName, float], options: PairOptions):
        super().__init__(model)
        self.losses, self.options = losses, options

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.rows, device=batch.tokens.device)

    def forward(self, batch: Batch) -> Loss:
        policy, balancing = answer_log_probabilities(self.model, batch)
        reference = batch.columns.get("reference", torch.zeros_like(policy))
        losses, figures = compared(policy, reference, answer_lengths(batch), self.losses, self.options)
        loss = losses.mean()
        means = {name: values.detach().mean() for name, values in figures.items()}
        return Loss(loss, means, balancing_parts(balancing))


def compared(
    policy: Tensor, reference: Tensor, lengths: Tensor, losses: dict[PairLossName, float], options: PairOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each pair's loss, and figures of each pair, all (B,).

    Args:
        policy, reference: log-probabilities of whole answers, (B, sides).
        lengths: tokens of the answers, (B, sides).
        losses: the weight of each loss in the sum.
        options: their settings.
    """
    pairs = Pairs(*policy[:, :2].unbind(1), *reference[:, :2].unbind(1), *lengths[:, :2].to(policy.dtype).unbind(1))
    total = torch.zeros_like(pairs.chosen)
    for name, weight in losses.items():
        if name == "kto":
            baseline = kto_baseline(policy[:, MISMATCHED] - reference[:, MISMATCHED])
            total = total + weight * kto(pairs, options, baseline=baseline)
        else:
            total = total + weight * PAIR_LOSSES[name](pairs, options)
    chosen, rejected = pairs.means if needs_no_reference(losses) else pairs.ratios
    margins = options.beta * (chosen - rejected)
    return total, {
        "margin": margins,
        "accuracy": (margins > 0).to(margins.dtype),
        "chosen_log_probability": pairs.means[0],
        "rejected_log_probability": pairs.means[1],
    }


def needs_no_reference(losses: dict[PairLossName, float]) -> bool:
    """Whether all of these losses do without a reference."""
    return losses.keys() <= WITHOUT_REFERENCE


def options_of(config: PreferenceConfig) -> PairOptions:
    """The settings of the losses.

    Raises:
        ValueError: settings that make no sense.
    """
    if "exo" in config.losses and not config.smoothing:
        raise ValueError("the loss exo needs a smoothing above 0")
    return PairOptions(
        beta=config.beta,
        smoothing=config.smoothing,
        margin=config.margin,
        temperature=config.temperature,
        divergence=config.divergence,
        alpha=config.alpha,
    )


class Preference(PairsTask):
    """The task on prepared pairs (see ``llmfast.training.task.Task``)."""

    config_class: ClassVar = PreferenceConfig
    command: ClassVar = "dpo"
    config: PreferenceConfig

    @classmethod
    def check(cls, config: PreferenceConfig) -> None:
        options_of(config)
        if config.start is None:
            raise ValueError("dpo needs start: a model that answers, to begin from")

    @classmethod
    def mismatched(cls, config: PreferenceConfig) -> bool:
        return "kto" in config.losses

    @classmethod
    def keeps_start(cls, config: PreferenceConfig) -> bool:
        return config.reference == "copy" and not needs_no_reference(config.losses)

    @property
    def is_judged(self) -> bool:
        """Whether data are single answers with a judgment."""
        return self.config.data.form == "judged"

    def objective(self) -> PreferenceObjective | JudgedObjective:
        decoder, options = self.start_decoder(), options_of(self.config)
        if self.is_judged:
            return JudgedObjective(decoder, options, self.config.bad_weight)
        return PreferenceObjective(decoder, self.config.losses, options)

    def source(self, share: Share, policy: Policy) -> LabeledLoader:
        _check_parts(self.config, share)
        splits = {"train": self.prepared.train, "validation": self.prepared.validation}
        self.splits = splits if needs_no_reference(self.config.losses) else self._referenced(splits, policy)
        return LabeledLoader(self.splits["train"], seed=self.config.training.seed, share=share)

    def _referenced(self, splits: dict[str, Any], policy: Policy) -> dict[str, ReferencedPairs]:
        """The splits with what the reference says of them."""
        if self.config.reference == "copy":
            reference = by_copy(self.start_decoder(), policy)
        elif self.config.reference == "adapter":
            reference = by_start(policy)
        else:
            tables = self._tables(splits, policy)
            return {name: ReferencedPairs(split, tables[name]) for name, split in splits.items()}
        return {name: ReferencedPairs(split, reference) for name, split in splits.items()}

    def _tables(self, splits: dict[str, Any], policy: Policy) -> dict[str, np.ndarray]:
        """The reference's log-probabilities of all pairs: computed by a run that begins, read by one that resumes."""
        path = self.folder / TABLES
        if not self.begins:
            return load_tables(path)
        reference = by_start(policy)
        tables = {name: log_probability_table(split, reference, policy) for name, split in splits.items()}
        if policy.team.share.index == 0:
            save_tables(path, tables)
        return tables

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """Loss and figures of held-out pairs or judged answers, each a mean over all of them at once."""
        sides = self.prepared.validation.sides

        def measure(batch: Batch) -> Tensor:
            found = answer_log_probabilities(model, batch).sums
            reference = batch.columns.get("reference", torch.zeros_like(found))
            third = batch.is_good[:, None].expand_as(found) if self.is_judged else answer_lengths(batch)
            return torch.stack([found, reference, third], 1)

        with policy.inference() as model:
            table = self.measured(measure, self.splits["validation"], policy, width=3 * sides, part=part)
        policy_, reference, third = torch.tensor(table, dtype=torch.float64).view(-1, 3, sides).unbind(1)
        options = options_of(self.config)
        if self.is_judged:
            losses, ratios = judged(policy_ - reference, third[:, OWN], options, self.config.bad_weight)
            means = {name: (each.total / each.count).item() for name, each in ratios.items()}
            return {"loss": losses.mean().item()} | means
        losses, figures = compared(policy_, reference, third, self.config.losses, options)
        return {"loss": losses.mean().item()} | {name: values.mean().item() for name, values in figures.items()}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out prompt as the template renders it, and what the model answers."""
        return self.answer(policy, self.prepared.validation.tokens(0, CHOSEN)[0])


def _check_parts(config: PreferenceConfig, share: Share) -> None:
    """Check that batches are not divided where a loss is one of the batch as a whole.

    Raises:
        ValueError: they are.
    """
    whole = sorted(config.losses.keys() & OF_THE_BATCH)
    if whole and (config.training.accumulate > 1 or share.count > 1):
        raise ValueError(
            f"the loss {whole[0]} compares the pairs of a batch with one another, and parts of it would give another "
            "loss: set training.accumulate to 1 and train in one process, or choose another loss"
        )
