"""Figures of classifiers and regressions beside scikit-learn's and SciPy's, and calibration."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn import metrics

from llmfast.evaluation.calibration import fit_temperature, reliability, sigmoid, softmax
from llmfast.evaluation.labels import LabelCounts, confusion_matrix
from llmfast.evaluation.regression import regression_figures, spearman


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.mark.parametrize("missing", [False, True], ids=["all labels", "a label that never occurs"])
def test_figures_of_one_label_per_text_are_those_of_scikit_learn(draw, missing):
    """Trap: a label that is missing from a split, which has no F1 to average."""
    targets, predictions = draw.integers(4, size=(2, 300))
    if missing:
        targets, predictions = targets * 2 % 3, predictions * 2 % 3
    counts = LabelCounts.of_matrix(confusion := confusion_matrix(targets, predictions, 4))
    assert (confusion == metrics.confusion_matrix(targets, predictions, labels=range(4))).all()
    reference = metrics.precision_recall_fscore_support(targets, predictions, labels=range(4), zero_division=0)
    for own, theirs in zip((counts.precision, counts.recall, counts.f1, counts.support), reference, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-15)
    assert counts.macro_f1 == pytest.approx(metrics.f1_score(targets, predictions, average="macro"), rel=1e-15)
    assert counts.micro_f1 == pytest.approx(metrics.accuracy_score(targets, predictions), rel=1e-15)


def test_figures_of_several_labels_per_text_are_those_of_scikit_learn(draw):
    targets, predictions = draw.random((2, 200, 5)) < 0.3
    counts = LabelCounts.of_sets(targets, predictions)
    for average in ("macro", "micro"):
        expected = metrics.f1_score(targets, predictions, average=average)
        assert getattr(counts, f"{average}_f1") == pytest.approx(expected, rel=1e-15)
    targets[:, 4] = predictions[:, 4] = False
    present = LabelCounts.of_sets(targets, predictions)
    expected = metrics.f1_score(targets, predictions, average="macro", labels=range(4))
    assert present.macro_f1 == pytest.approx(expected, rel=1e-15)


def test_a_split_without_any_label_has_figures():
    counts = LabelCounts.of_sets(np.zeros((3, 2), bool), np.zeros((3, 2), bool))
    assert (counts.macro_f1, counts.micro_f1) == (0, 0)


def test_figures_of_a_regression_are_those_of_scikit_learn_and_scipy(draw):
    targets = draw.integers(10, size=400) + 1e4  # with ties, and far from zero
    predictions = (targets + draw.normal(size=400)).astype(np.float32)
    found = regression_figures(targets, predictions)
    wide = predictions.astype(np.float64)
    assert found == {
        "mse": pytest.approx(metrics.mean_squared_error(targets, wide), rel=1e-12),
        "mae": pytest.approx(metrics.mean_absolute_error(targets, wide), rel=1e-12),
        "pearson": pytest.approx(stats.pearsonr(targets, wide).statistic, rel=1e-9),
        "spearman": pytest.approx(stats.spearmanr(targets, wide).statistic, rel=1e-12),
    }
    assert np.isnan(spearman(targets, np.ones(400)))


def test_the_calibration_error_counts_every_prediction_once(draw):
    confidence = np.append(draw.random(500), [0.0, 1.0, 1 / 15])
    right = draw.random(503) < confidence
    found = reliability(confidence, right)
    assert found.counts.sum() == 503
    places = [next(place for place in range(15) if c <= (place + 1) / 15) for c in confidence]
    expected = sum(
        abs(np.sum(confidence[members] - right[members]))
        for members in (np.flatnonzero(np.array(places) == place) for place in range(15))
    )
    assert found.error == pytest.approx(expected / 503, rel=1e-12)
    assert reliability(np.ones(4), np.ones(4, bool)).error == 0


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_the_temperature_is_that_of_the_lowest_cross_entropy(draw, several):
    """Logits drawn with a known temperature give about that one, and just what a general optimizer finds."""
    true = draw.normal(size=(4000, 3)) * 2
    if several:
        targets = (draw.random(true.shape) < sigmoid(true)).astype(np.float32)
    else:
        targets = np.array([draw.choice(3, p=row) for row in softmax(true)])
    logits = (3 * true).astype(np.float32)

    def loss(temperature):
        divided, wanted = torch.from_numpy(logits.astype(np.float64) / temperature), torch.from_numpy(targets)
        if several:
            return torch.nn.functional.binary_cross_entropy_with_logits(divided, wanted.double()).item()
        return torch.nn.functional.cross_entropy(divided, wanted).item()

    found = fit_temperature(logits, targets)
    assert found == pytest.approx(3, rel=0.1)
    best = optimize.minimize_scalar(loss, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.x, rel=1e-5)


def test_a_temperature_is_found_where_nothing_is_wrong_and_where_all_is():
    logits = np.array([[2.0, -1.0], [-3.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(100)


def test_probabilities_of_large_logits_are_finite():
    assert softmax(np.array([[1e4, 0.0]])).tolist() == [[1.0, 0.0]]
    assert sigmoid(np.array([[1e4, -1e4]])).tolist() == [[1.0, 0.0]]
