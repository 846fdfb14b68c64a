"""Figures of a classifier, counted over whole splits: never means of the means of batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, labels: int) -> np.ndarray:
    """How often label t was predicted as p: (labels, labels) int64, rows t, columns p.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]

    Args:
        targets: (N,) integers from 0 to ``labels`` - 1.
        predictions: (N,), the same kind.
        labels: how many there are.
    """
    counts = np.bincount(targets * labels + predictions, minlength=labels * labels)
    return counts.reshape(labels, labels)


@dataclass(frozen=True)
class LabelCounts:
    """For each label (L,) int64: how often it was predicted rightly, how often at all, and how often it is there."""

    right: np.ndarray
    predicted: np.ndarray
    support: np.ndarray

    @classmethod
    def of_matrix(cls, confusion: np.ndarray) -> LabelCounts:
        """Those of a classifier that gives each text one label."""
        return cls(np.diag(confusion), confusion.sum(0), confusion.sum(1))

    @classmethod
    def of_sets(cls, targets: np.ndarray, predictions: np.ndarray) -> LabelCounts:
        """Those of a classifier that gives each text any number of labels: both (N, L) bool."""
        return cls((targets & predictions).sum(0), predictions.sum(0), targets.sum(0))

    @property
    def precision(self) -> np.ndarray:
        """Share of the predictions of each label that are right, (L,) float64; 0 where it was never predicted."""
        return _share(self.right, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of the texts with each label that were found, (L,) float64; 0 where there is none."""
        return _share(self.right, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall of each label, (L,) float64."""
        return _share(2 * self.right, self.predicted + self.support)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that are there or were predicted: one that does neither says nothing."""
        occurs = self.predicted + self.support > 0
        return float(self.f1[occurs].mean()) if occurs.any() else 0.0

    @property
    def micro_f1(self) -> float:
        """F1 of all labels counted together; with one label per text, the accuracy."""
        return float(_share(2 * self.right.sum(), self.predicted.sum() + self.support.sum()))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)
