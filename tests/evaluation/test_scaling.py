"""Scaling laws: found again from their own losses, with an uncertainty that covers the truth."""

import itertools

import numpy as np
import pytest

from llmfast.evaluation.scaling import ScalingLaw, bootstrap, fit_scaling_law

SIZES = list(itertools.product((1e5, 4e5, 2e6, 1e7), (1e6, 5e6, 3e7)))
N, D = (np.array(column) for column in zip(*SIZES, strict=True))


@pytest.mark.parametrize(
    "law",
    [
        ScalingLaw(floor=1.69, a=406.4, alpha=0.34, b=410.7, beta=0.28),  # Hoffmann et al. 2022, eq. 10
        ScalingLaw(floor=0.0, a=50.0, alpha=0.2, b=30.0, beta=0.5),
    ],
)
def test_a_law_is_found_again(law):
    losses = [law.loss(n, d) for n, d in SIZES]
    found = fit_scaling_law(N, D, losses)
    assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), abs=0.02)
    assert found.loss(1e8, 1e8) == pytest.approx(law.loss(1e8, 1e8), rel=0.02)  # beyond what was measured


def test_what_has_no_effect_gets_no_factor():
    """Trap: a negative factor, by which a loss would rise with size."""
    found = fit_scaling_law(N, D, 2.0 + 100.0 / D**0.4)
    assert found.a / 1e5**found.alpha == pytest.approx(0.0, abs=2e-3)
    rising = fit_scaling_law(N, D, 2.0 + 1e-8 * N)
    assert rising.loss(1e7, 1e6) <= rising.loss(1e5, 1e6)


def test_the_spread_of_resampled_fits_covers_the_truth():
    law = ScalingLaw(floor=1.7, a=400.0, alpha=0.34, b=400.0, beta=0.28)
    noise = np.random.default_rng(0).normal(1.0, 0.004, len(N))
    losses = np.array([law.loss(n, d) for n, d in SIZES]) * noise
    laws = bootstrap(N, D, losses, range(len(N)), count=40)
    predicted = [each.loss(2e7, 6e7) for each in laws]
    assert min(predicted) < law.loss(2e7, 6e7) < max(predicted)
    assert bootstrap(N, D, losses, range(len(N)), count=2) == laws[:2]  # the draws are those of the seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1e5] * 4, [1e6] * 4, [3.0] * 4), "five measurements"),
        ((N, D, np.zeros(len(N))), "losses must be positive"),
        ((np.full(len(N), 1e5), D, np.ones(len(N))), "the same number of parameters"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(*arguments)
