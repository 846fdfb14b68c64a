"""Figures of a regression over a whole split."""

from __future__ import annotations

import numpy as np


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two (N,) arrays, from -1 to 1; NaN where one of them is constant, since there is none then.

    >>> round(pearson(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])), 12)
    1.0
    """
    a, b = (each - each.mean() for each in (np.asarray(a, np.float64), np.asarray(b, np.float64)))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of the ranks of two (N,) arrays; equal values share the mean of their ranks.

    >>> spearman(np.array([1, 2, 3]), np.array([1, 10, 100]))
    1.0
    """
    return pearson(ranks(a), ranks(b))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 1, as (N,) float64.

    >>> ranks(np.array([10, 30, 10, 20])).tolist()
    [1.5, 4.0, 1.5, 3.0]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]


def regression_figures(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean squared and mean absolute error, and both correlations, of (N,) arrays."""
    errors = predictions.astype(np.float64) - targets
    return {
        "mse": float(np.square(errors).mean()),
        "mae": float(np.abs(errors).mean()),
        "pearson": pearson(targets, predictions),
        "spearman": spearman(targets, predictions),
    }
