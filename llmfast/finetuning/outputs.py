"""A classifier's outputs on a whole split, and what they amount to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmfast.data.examples.labeled import LabeledSplit
from llmfast.finetuning.problems import Problem
from llmfast.training.task import Policy

AT_ONCE = 64


@dataclass(frozen=True)
class Outputs:
    """Outputs (N, O) float32 and targets of N texts, in the order of the split."""

    logits: np.ndarray
    targets: np.ndarray

    def figures(self, problem: Problem) -> dict[str, float]:
        """The loss, and what the problem says of the whole split."""
        weights, losses = problem.sums(self.logits, self.targets)
        return {"loss": losses / weights, **problem.figures(self.logits, self.targets)}

    def cooled(self, temperature: float) -> Outputs:
        """The same with logits divided by ``temperature``."""
        return Outputs(self.logits / np.float32(temperature), self.targets)


def outputs_of(split: LabeledSplit, policy: Policy, *, most: int | None = None) -> Outputs:
    """The outputs of the model for a split, or for ``most`` texts spread evenly over it.

    Processes divide the work and all get the outputs for every text: what is made of them is what one process alone
    makes of them. Texts of like length are worked through together.
    """
    count = len(split) if most is None else min(len(split), most)
    chosen = np.arange(count) * len(split) // count
    order = np.argsort(split.lengths[chosen], kind="stable")
    groups = [chosen[order[first : first + AT_ONCE]] for first in range(0, count, AT_ONCE)]

    def measure(places: np.ndarray) -> list[float]:
        batch = split.batch(places).to(policy.device)
        with policy.autocast():
            logits = model(batch.tokens, batch.lengths).logits
        flat = logits.double().flatten().cpu()
        return torch.nn.functional.pad(flat, (0, width - len(flat))).tolist()

    with policy.inference() as model:
        width = AT_ONCE * model.config.outputs
        table = np.array(policy.team.figures(measure, groups, width), np.float32)
    logits = np.empty((count, width // AT_ONCE), np.float32)
    logits[order] = table.reshape(-1, width // AT_ONCE)[:count]
    return Outputs(logits, split.targets[chosen])
