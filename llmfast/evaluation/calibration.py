"""Whether probabilities mean what they say: expected calibration error, and the temperature that lowers it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # as in Guo et al. 2017
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width by their confidence; each field (bins,)."""

    counts: np.ndarray
    confidence: np.ndarray
    """Mean confidence of the predictions in each bin; NaN where it is empty."""
    accuracy: np.ndarray
    """Share of the predictions in each bin that are right; NaN where it is empty."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence from accuracy over the predictions."""
        filled = self.counts > 0
        distance = np.abs(self.confidence - self.accuracy)[filled]
        return float((self.counts[filled] * distance).sum() / self.counts.sum())


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort predictions into bins ((b - 1) / bins, b / bins] by their confidence.

    >>> reliability(np.array([0.9, 0.9]), np.array([True, False])).error
    0.4

    Args:
        confidence: (N,) probabilities.
        right: (N,) bool, whether what they are probabilities of was so.
        bins: how many.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=each, minlength=bins) / counts for each in (confidence, right)]
    return Reliability(counts, *means)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of (N, L) logits, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probability of each of (N, L) logits by itself, in float64."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The number that logits are to be divided by for the lowest cross entropy (Guo et al. 2017).

    The cross entropy is convex in the inverse temperature, so that its slope, which only rises, is bisected. Logits
    that put every text right have no lowest cross entropy: the result is then the lowest temperature there is, 0.01.

    Args:
        logits: (N, L).
        targets: (N,) integers, or (N, L) bool where each text has any number of labels.
    """
    logits = logits.astype(np.float64)
    if targets.ndim == 1:
        wanted = logits[np.arange(len(targets)), targets].mean()

        def slope(inverse: float) -> float:
            return float((softmax(inverse * logits) * logits).sum(1).mean() - wanted)

    else:

        def slope(inverse: float) -> float:
            return float(((sigmoid(inverse * logits) - targets) * logits).mean())

    low, high = np.log(1 / HIGHEST_TEMPERATURE), np.log(1 / LOWEST_TEMPERATURE)
    for _ in range(60):  # halvings of a range of 9.2: down to the last bit
        middle = (low + high) / 2
        low, high = (low, middle) if slope(np.exp(middle)) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))
