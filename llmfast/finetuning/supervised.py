"""Supervised finetuning: the task of answering instructions as the examples do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np

from llmfast.data.batch import IGNORED, Source
from llmfast.data.examples.instructions import (
    PreparedInstructions,
    describe_instructions,
    open_instructions,
    prepare_instructions,
)
from llmfast.data.examples.labeled import LabeledLoader
from llmfast.data.loader import Loader
from llmfast.data.shards import Share
from llmfast.finetuning.chat_task import ChatTask
from llmfast.finetuning.config import SupervisedConfig
from llmfast.training.objective import Objective
from llmfast.training.pretraining import NextToken
from llmfast.training.task import Policy, Report

EVALUATED_AT_ONCE = 16
PART_EXAMPLES = 256  # of the validation split, for evaluations during training


class SupervisedFinetuning(ChatTask):
    """The task on prepared instructions (see ``llmfast.training.task.Task``).

    Its objective is that of pretraining: the cross entropy of the tokens that are targets, which are those of answers.
    """

    config_class: ClassVar = SupervisedConfig
    command: ClassVar = "sft"
    config: SupervisedConfig
    prepared: PreparedInstructions

    @classmethod
    def prepare_data(cls, config: SupervisedConfig, folder: Path, report: Report) -> None:
        prepare_instructions(config.data, folder, report=report)

    @classmethod
    def open_data(cls, config: SupervisedConfig, folder: Path, verify: bool) -> PreparedInstructions:
        return open_instructions(folder, max_tokens=config.data.max_tokens, verify=verify)

    @classmethod
    def describe_data(cls, prepared: PreparedInstructions, report: Report) -> None:
        describe_instructions(prepared, report)

    def objective(self) -> Objective:
        return NextToken(self.start_decoder())

    def source(self, share: Share, policy: Policy) -> Source:
        seed = self.config.training.seed
        if self.config.data.packing == "none":
            return LabeledLoader(self.prepared.train, seed=seed, share=share)
        return Loader(self.prepared.train.packed(), seed=seed, share=share, document_masks=True)

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """The mean loss of what is trained in held-out examples, in nats per token, and its exponential."""
        split = self.prepared.validation
        count = min(len(split), PART_EXAMPLES) if part else len(split)
        chosen = np.arange(count) * len(split) // count
        # Examples of like length together: little padding.
        chosen = chosen[np.argsort(split.lengths[chosen], kind="stable")]
        groups = [chosen[first : first + EVALUATED_AT_ONCE] for first in range(0, count, EVALUATED_AT_ONCE)]

        def measure(places: np.ndarray) -> tuple[float, int]:
            batch = split.batch(places).to(policy.device)
            with policy.autocast():
                loss = model(batch.tokens, batch.targets)
            targets = int((batch.targets != IGNORED).sum())
            return float(loss) * targets, targets

        with policy.inference() as model:
            table = policy.team.figures(measure, groups, 2)
        nats, targets = map(sum, zip(*table, strict=True))
        loss = nats / targets
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def sample(self, policy: Policy) -> tuple[str, str]:
        """A held-out instruction as the template renders it, and what the model answers."""
        tokens, trained = self.prepared.validation.tokens(0)
        return self.answer(policy, tokens[: max(1, trained.index(True))])
