"""Scaling laws: how the loss falls with parameters and tokens, fitted to runs, with the uncertainty of the fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXPONENTS = (0.02, 2.0)  # the range that is searched
GRID = 24  # exponents a side, in each of ZOOMS ever smaller squares
ZOOMS = 5

Numbers = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScalingLaw:
    """``L(N, D) = floor + a / N**alpha + b / D**beta`` for N parameters and D tokens (Hoffmann et al. 2022, eq. 2)."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law predicts."""
        return self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta


def fit_scaling_law(parameters: Numbers, tokens: Numbers, losses: Numbers) -> ScalingLaw:
    """The law with the least sum of squared relative errors; floor, a and b are not negative.

    For given exponents the law is linear in the other three numbers, which are then exact; the exponents are found on
    a grid that is refined around its best place.

    Args:
        parameters: N of each measurement, two values at least.
        tokens: D of each measurement, two values at least.
        losses: the measured loss, positive.

    Raises:
        ValueError: fewer than five measurements, lists of different lengths, numbers that are not positive, or only one
            value of N or D.

    >>> law = ScalingLaw(floor=1.5, a=30.0, alpha=0.3, b=200.0, beta=0.4)
    >>> sizes = [(n, d) for n in (1e5, 1e6, 1e7) for d in (1e6, 1e7, 1e8)]
    >>> found = fit_scaling_law(*zip(*sizes), [law.loss(n, d) for n, d in sizes])
    >>> round(found.alpha, 2), round(found.beta, 2), round(found.floor, 2)
    (0.3, 0.4, 1.5)
    """
    n, d, y = (np.asarray(each, dtype=np.float64) for each in (parameters, tokens, losses))
    _check(n, d, y)
    low, high = np.full(2, EXPONENTS[0]), np.full(2, EXPONENTS[1])
    law, exponents = _best_law(low, high, n, d, y)
    for _ in range(ZOOMS - 1):
        step = (high / low) ** (2 / (GRID - 1))  # two places to each side
        low, high = np.maximum(exponents / step, EXPONENTS[0]), np.minimum(exponents * step, EXPONENTS[1])
        law, exponents = _best_law(low, high, n, d, y)
    return law


def bootstrap(
    parameters: Numbers, tokens: Numbers, losses: Numbers, runs: Sequence[object], *, count: int = 200, seed: int = 0
) -> list[ScalingLaw]:
    """Laws fitted to resampled runs, whose spread is the uncertainty of the fit.

    Args:
        parameters: as for ``fit_scaling_law``.
        tokens: as for ``fit_scaling_law``.
        losses: as for ``fit_scaling_law``.
        runs: which run each measurement is of: those of one run are drawn together, because they are not independent.
        count: how many laws.
        seed: of the draws.

    Raises:
        ValueError: as ``fit_scaling_law``; ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    n, d, y = (np.asarray(each, dtype=np.float64) for each in (parameters, tokens, losses))
    _check(n, d, y)
    names = list(dict.fromkeys(runs))
    rows_of = [np.array([row for row, run in enumerate(runs) if run == name]) for name in names]
    generator = np.random.default_rng(seed)
    laws = []
    while len(laws) < count:
        drawn = np.concatenate([rows_of[run] for run in generator.integers(len(names), size=len(names))])
        # A draw of runs of a single size says nothing about sizes.
        if len(np.unique(n[drawn])) > 1 and len(np.unique(d[drawn])) > 1:
            laws.append(fit_scaling_law(n[drawn], d[drawn], y[drawn]))
    return laws


def _check(n: npt.NDArray[np.float64], d: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
    if not len(n) == len(d) == len(y) >= 5:
        raise ValueError(
            f"a law of five numbers needs five measurements or more, each with parameters, tokens and a loss; got "
            f"{len(n)}, {len(d)} and {len(y)}"
        )
    for name, values in (("parameters", n), ("tokens", d), ("losses", y)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive numbers")
    for name, values in (("parameters", n), ("tokens", d)):
        if len(np.unique(values)) < 2:
            raise ValueError(f"all measurements have the same number of {name}: the law needs two at least")


def _center(values: npt.NDArray[np.float64]) -> float:
    """Powers are taken of values around 1, where they are of one size."""
    return float(np.exp(np.log(values).mean()))


def _best_law(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    n: npt.NDArray[np.float64],
    d: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> tuple[ScalingLaw, npt.NDArray[np.float64]]:
    """The best law with exponents on a grid from ``low`` to ``high``, and its exponents."""
    alphas, betas = (np.geomspace(low[i], high[i], GRID) for i in range(2))
    pairs = np.array(list(itertools.product(alphas, betas)))
    errors, solutions = _best_factors(pairs, n, d, y)
    best = int(errors.argmin())
    (alpha, beta), (floor, a, b) = pairs[best].tolist(), solutions[best].tolist()
    return ScalingLaw(floor, a * _center(n) ** alpha, alpha, b * _center(d) ** beta, beta), pairs[best]


def _best_factors(
    pairs: npt.NDArray[np.float64],
    n: npt.NDArray[np.float64],
    d: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each pair of exponents, the error and the floor, a and b that make it least and are not negative.

    With three unknowns, the solution is that of one of their seven subsets, the others being 0.
    """
    features = np.stack(
        [
            np.broadcast_to(1.0, (len(pairs), len(n))),
            (n / _center(n)) ** -pairs[:, :1],
            (d / _center(d)) ** -pairs[:, 1:],
        ],
        axis=-1,
    )
    features = features / y[:, None]  # relative errors
    errors, solutions = np.full(len(pairs), np.inf), np.zeros((len(pairs), 3))
    for size in (3, 2, 1):
        for chosen in itertools.combinations(range(3), size):
            x = features[..., chosen]
            products = x.swapaxes(-1, -2) @ x
            # Nearly equal columns have no single solution; the smaller subsets, tried as well, have.
            ridge = 1e-13 * np.trace(products, axis1=-2, axis2=-1)[:, None, None] * np.eye(size)
            factors = np.linalg.solve(products + ridge, x.sum(axis=1)[..., None])[..., 0]
            found = ((np.einsum("pmk,pk->pm", x, factors) - 1) ** 2).sum(axis=-1)
            better = (factors >= 0).all(axis=-1) & (found < errors)
            errors[better] = found[better]
            solutions[better] = 0.0
            solutions[np.ix_(better, chosen)] = factors[better]
    return errors, solutions
