"""The learning-rate schedule."""

import pytest

from llmfast.training.config import TrainingConfig
from llmfast.training.schedule import learning_rate_factor


def test_warm_up_then_cosine_to_the_floor():
    config = TrainingConfig(steps=1000, warmup=0.1, final_learning_rate=0.1)
    factors = [learning_rate_factor(config, step) for step in range(1000)]
    assert factors[0] == 0.01
    assert factors[99] == factors[100] == 1.0
    assert factors[550] == pytest.approx(0.55)
    assert factors[999] == pytest.approx(0.1, abs=1e-4)
    assert sorted(factors[100:], reverse=True) == factors[100:]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(steps):
    config = TrainingConfig(steps=steps)
    assert all(0 < learning_rate_factor(config, step) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "training.steps must be at least 1"),
        (
            {"batch_size": 6, "accumulate": 4},
            "training.batch_size 6 is not a multiple of training.accumulate 4",
        ),
        ({"learning_rate": -1e-3}, "training.learning_rate must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)
