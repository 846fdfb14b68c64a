"""Process and outcome reward models: whether each step of an answer is right, or the answer as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfast.alignment.losses.reduce import masked_sum
from llmfast.alignment.losses.reward import process
from llmfast.data.batch import Batch
from llmfast.models.classifier import SequenceClassifier
from llmfast.models.experts import Balancing
from llmfast.training.objective import Loss, Objective, Ratio, balancing_parts


class StepObjective(Objective):
    """The cross entropy of the labels of steps in a batch of a ``StepSplit``, a mean over the steps."""

    model: SequenceClassifier

    def weight(self, batch: Batch) -> Tensor:
        return batch.is_end.sum()

    def forward(self, batch: Batch) -> Loss:
        logits, balancing = step_logits(self.model, batch)
        labels = batch.labels[batch.is_end]
        losses, figures = judged(logits, labels)
        return Loss(losses.mean(), figures, balancing_parts(balancing))


def step_logits(model: SequenceClassifier, batch: Batch) -> tuple[Tensor, Balancing | None]:
    """The log-odds (N,) that steps are right, read after the last token of each, row by row; and balancing losses."""
    outputs, balancing = model(batch.tokens, batch.is_real.sum(1), ends=batch.is_end)
    return outputs[:, 0], balancing


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Ratio]]:
    """Each step's loss (N,), and figures, of log-odds and labels (N,)."""
    logits_, is_right = logits.detach(), labels >= 0.5
    return process(logits, labels), {
        "accuracy": _share((logits_ > 0) == is_right, torch.ones_like(is_right)),
        "right_probability": _share(logits_.sigmoid(), is_right),
        "wrong_probability": _share(logits_.sigmoid(), ~is_right),
    }


def _share(values: Tensor, mask: Tensor) -> Ratio:
    return Ratio(masked_sum(values.float(), mask), mask.sum())


def found_first_errors(logits: Tensor, labels: Tensor, is_step: Tensor) -> Tensor:
    """Of each answer (B,): 1 if its first wrong step is found, or that it has none; else 0. All (B, steps)."""

    def first(is_wrong: Tensor) -> Tensor:
        return torch.where((is_wrong & is_step).any(1), (is_wrong & is_step).int().argmax(1), -1)

    return (first(logits <= 0) == first(labels < 0.5)).to(logits.dtype)
