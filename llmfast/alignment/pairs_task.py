"""The base of tasks on preference pairs: what preference training and reward models have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llmfast.alignment.reference import ReferencedPairs
from llmfast.data.batch import Batch
from llmfast.data.examples.judged import JudgedSplit, PreparedJudgments, describe_judged, open_judged, prepare_judged
from llmfast.data.examples.preferences import PairSplit, PreparedPairs, describe_pairs, open_pairs, prepare_pairs
from llmfast.data.examples.steps import PreparedSteps, StepSplit, describe_steps, open_steps, prepare_steps
from llmfast.finetuning.chat_task import ChatTask
from llmfast.training.task import Policy, Report

EVALUATED_AT_ONCE = 8  # pairs
PART_PAIRS = 256  # of the validation split, for evaluations during training
Prepared = PreparedPairs | PreparedJudgments | PreparedSteps


class PairsTask(ChatTask):
    """Those parts of a task on prepared pairs that do not depend on what is learned of them."""

    prepared: Prepared

    @classmethod
    def check(cls, config: Any) -> None:
        """Check the settings before anything is read."""

    @classmethod
    def mismatched(cls, config: Any) -> bool:
        """Whether batches have answers to other prompts as a third side."""
        return False

    @classmethod
    def reads_steps(cls, config: Any) -> bool:
        """Whether the model is read where steps end, and not compared on whole answers."""
        return False

    @classmethod
    def prepare_data(cls, config: Any, folder: Path, report: Report) -> None:
        cls.check(config)
        if config.data.max_tokens is None:
            config.data.max_tokens = cls.longest_row(config)  # what is left to compare of a pair depends on it
        prepare = prepare_pairs
        if config.data.form != "pairs":
            prepare = prepare_steps if cls.reads_steps(config) else prepare_judged
        prepare(config.data, folder, max_tokens=config.data.max_tokens, report=report)

    @classmethod
    def open_data(cls, config: Any, folder: Path, verify: bool) -> Prepared:
        if config.data.form == "pairs":
            mismatched = cls.mismatched(config)
            return open_pairs(folder, max_tokens=config.data.max_tokens, mismatched=mismatched, verify=verify)
        opened = open_steps if cls.reads_steps(config) else open_judged
        return opened(folder, max_tokens=config.data.max_tokens, verify=verify)

    @classmethod
    def describe_data(cls, prepared: Any, report: Report) -> None:
        describe = {PairSplit: describe_pairs, JudgedSplit: describe_judged, StepSplit: describe_steps}
        describe[type(prepared.train)](prepared, report)

    def measured(
        self,
        measure: Callable[[Batch], Tensor],
        split: PairSplit | JudgedSplit | StepSplit | ReferencedPairs,
        policy: Policy,
        *,
        width: int,
        part: bool,
    ) -> np.ndarray:
        """``width`` numbers of each pair of a split, or of ``part`` of it: (pairs, width) float64, by all processes.

        ``measure`` gives them of a batch, (B, ...).
        """
        count = min(len(split), PART_PAIRS) if part else len(split)
        chosen = np.arange(count) * len(split) // count
        # Pairs of like length together: little padding.
        chosen = chosen[np.argsort(split.lengths[chosen], kind="stable")]
        groups = [chosen[first : first + EVALUATED_AT_ONCE] for first in range(0, count, EVALUATED_AT_ONCE)]

        def numbers(places: np.ndarray) -> list[float]:
            with policy.autocast():
                found = measure(split.batch(places).to(policy.device)).double().flatten().tolist()
            return found + [0.0] * (EVALUATED_AT_ONCE * width - len(found))

        table = policy.team.figures(numbers, groups, EVALUATED_AT_ONCE * width)
        rows = [np.reshape(row, (-1, width))[: len(places)] for places, row in zip(groups, table, strict=True)]
        return np.concatenate(rows)
