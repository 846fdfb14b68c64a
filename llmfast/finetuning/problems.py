"""What is asked about a text: one label, any number of labels, or a number; each with its loss and its figures."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.data.examples.labeled import LabeledSplit
from llmfast.evaluation.calibration import Reliability, reliability, sigmoid, softmax
from llmfast.evaluation.labels import LabelCounts, confusion_matrix
from llmfast.evaluation.regression import regression_figures
from llmfast.models.classifier import ClassifierConfig
from llmfast.training.objective import Figure, Ratio

ClassWeights = Literal["equal", "balanced"] | dict[str, float]


class Problem(nn.Module, abc.ABC):
    """The loss of a classifier's outputs (B, O) float32, and what they amount to over a whole split.

    Losses are summed and divided by weights, so that parts of batches can be put together exactly.
    """

    @abc.abstractmethod
    def weights(self, targets: Tensor) -> Tensor:
        """How much each text counts in the loss, (B,) float32."""

    @abc.abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each text (B,), times its weight."""

    def sums(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """The weights and the losses of a split, added up in float64."""
        rows = torch.from_numpy(outputs), torch.from_numpy(targets)
        return float(self.weights(rows[1]).double().sum()), float(self.losses(*rows).double().sum())

    @abc.abstractmethod
    def training_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Figure]:
        """What to show of a batch."""

    @abc.abstractmethod
    def figures(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """What to show of a split: outputs (N, O) and targets as in ``LabeledSplit.targets``."""


class Classes(Problem):
    """A problem whose answers are labels, which can be counted."""

    @abc.abstractmethod
    def counts(self, outputs: np.ndarray, targets: np.ndarray) -> LabelCounts:
        """How often each label was predicted and is there."""

    @abc.abstractmethod
    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> Reliability:
        """How confident the predictions are, and how often they are right."""


class SingleLabel(Classes):
    """One label for each text: softmax cross entropy, weighted by class."""

    class_weights: Tensor

    def __init__(self, class_weights: Tensor):
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def weights(self, targets: Tensor) -> Tensor:
        return self.class_weights[targets]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, self.class_weights, reduction="none")

    def training_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Figure]:
        right = (outputs.argmax(1) == targets).sum()
        return {"accuracy": Ratio(right, torch.tensor(len(targets), device=right.device))}

    def confusion(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See ``llmfast.evaluation.labels.confusion_matrix``."""
        return confusion_matrix(targets, outputs.argmax(1), outputs.shape[1])

    def counts(self, outputs: np.ndarray, targets: np.ndarray) -> LabelCounts:
        return LabelCounts.of_matrix(self.confusion(outputs, targets))

    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> Reliability:
        """Of the label that is predicted."""
        probabilities = softmax(outputs)
        return reliability(probabilities.max(1), outputs.argmax(1) == targets)

    def figures(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        counts = self.counts(outputs, targets)
        return {
            "accuracy": counts.micro_f1,
            "macro_f1": counts.macro_f1,
            "calibration_error": self.reliability(outputs, targets).error,
        }


class MultiLabel(Classes):
    """Any number of labels for each text: a logistic loss per label, of which the mean over labels is taken.

    The weight of a label is that of the texts that have it, beside 1 for those that have it not.
    """

    class_weights: Tensor

    def __init__(self, class_weights: Tensor):
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def weights(self, targets: Tensor) -> Tensor:
        return targets.new_ones(len(targets))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=self.class_weights, reduction="none")
        return losses.mean(1)

    def training_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Figure]:
        predicted, there = outputs > 0, targets > 0.5
        return {"micro_f1": Ratio(2 * (predicted & there).sum(), predicted.sum() + there.sum())}

    def counts(self, outputs: np.ndarray, targets: np.ndarray) -> LabelCounts:
        return LabelCounts.of_sets(targets > 0.5, outputs > 0)

    def reliability(self, outputs: np.ndarray, targets: np.ndarray) -> Reliability:
        """Of the probability of every label of every text."""
        return reliability(sigmoid(outputs).ravel(), (targets > 0.5).ravel())

    def figures(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        counts = self.counts(outputs, targets)
        return {
            "micro_f1": counts.micro_f1,
            "macro_f1": counts.macro_f1,
            "accuracy": float(((outputs > 0) == (targets > 0.5)).all(1).mean()),
            "calibration_error": self.reliability(outputs, targets).error,
        }


class Regression(Problem):
    """A number for each text: the squared error, in units of the variance of the training numbers.

    A loss of 1 is that of the mean of all numbers, whatever they measure.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def weights(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] - targets) / self.scale).square()

    def training_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Figure]:
        return {"mae": (outputs[:, 0] - targets).abs().mean()}

    def figures(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return regression_figures(targets, outputs[:, 0])


def make_problem(config: ClassifierConfig, class_weights: ClassWeights, train: LabeledSplit) -> Problem:
    """The problem of a classifier.

    Args:
        config: says which it is, and has its labels.
        class_weights: as ``ClassificationConfig.class_weights``.
        train: what balanced weights and the scale of numbers come from.

    Raises:
        ValueError: weights for labels that there are not, or that are not positive.
    """
    if config.problem == "regression":
        return Regression(config.scale)
    weights = torch.tensor(_weights(config, class_weights, train), dtype=torch.float32)
    return (SingleLabel if config.problem == "single_label" else MultiLabel)(weights)


def _weights(config: ClassifierConfig, class_weights: ClassWeights, train: LabeledSplit) -> list[float]:
    labels = config.labels
    if class_weights == "equal":
        return [1.0] * len(labels)
    if class_weights == "balanced":
        counts = train.counts()
        # As scikit-learn has it: every class counts alike in all. With many labels per text: a label's texts count as
        # much in all as those without it.
        if config.problem == "single_label":
            return [len(train) / (len(labels) * int(count)) for count in counts]
        return [max(len(train) - int(count), 1) / max(int(count), 1) for count in counts]
    return _given(labels, class_weights)


def _given(labels: tuple[str, ...], weights: Mapping[str, Any]) -> list[float]:
    for name, weight in weights.items():
        if name not in labels:
            raise ValueError(f"class_weights names the label {name!r}; there are {', '.join(map(repr, labels))}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"class_weights: the weight of {name!r} must be positive and finite, got {weight}")
    return [float(weights.get(name, 1.0)) for name in labels]
