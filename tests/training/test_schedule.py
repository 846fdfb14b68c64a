"""Schedules of the learning rate, the batch and the context."""

import itertools
import math

import pytest

from llmfast.training.config import TrainingConfig
from llmfast.training.schedule import batch_size_at, context_at, learning_rate_factor


def factors(steps=1000, **settings):
    config = TrainingConfig(steps=steps, **({"warmup": 0.1} | settings))
    return [learning_rate_factor(config, step) for step in range(steps)]


def test_warm_up_then_cosine_to_the_floor():
    found = factors(final_learning_rate=0.1)
    assert found[0] == 0.01
    assert found[99] == found[100] == 1.0
    assert found[550] == pytest.approx(0.55)
    assert found[999] == pytest.approx(0.1, abs=1e-4)
    assert sorted(found[100:], reverse=True) == found[100:]


def test_warm_up_stable_decay():
    found = factors(schedule="wsd", decay=0.2, final_learning_rate=0.1)
    assert found[:100] == [(step + 1) / 100 for step in range(100)]
    assert set(found[100:801]) == {1.0}
    assert found[850] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(50 / 200)))
    assert 0.1 <= found[999] < 0.11


def test_a_line():
    found = factors(schedule="linear")
    assert found[100] == 1.0
    assert found[550] == pytest.approx(0.5)
    steps = [a - b for a, b in itertools.pairwise(found[100:])]
    assert max(steps) - min(steps) < 1e-12


def test_constant():
    assert set(factors(schedule="constant")[100:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(steps, schedule):
    assert all(0 < factor <= 1 for factor in factors(steps, schedule=schedule))


def test_the_batch_and_the_context_grow_by_doubling():
    config = TrainingConfig(steps=100, batch_size=64, batch_warmup=0.3, context_warmup=0.6)
    sizes = [batch_size_at(config, step) for step in range(100)]
    assert [(size, sizes.count(size)) for size in dict.fromkeys(sizes)] == [
        (8, 10),
        (16, 10),
        (32, 10),
        (64, 70),
    ]
    lengths = [context_at(config, 1024, step) for step in range(100)]
    assert [(n, lengths.count(n)) for n in dict.fromkeys(lengths)] == [
        (128, 20),
        (256, 20),
        (512, 20),
        (1024, 40),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "training.steps must be at least 1"),
        (
            {"batch_size": 6, "accumulate": 4},
            "training.batch_size 6 is not a multiple of training.accumulate 4",
        ),
        ({"learning_rate": -1e-3}, "training.learning_rate must be a positive number"),
        ({"learning_rate": math.nan}, "training.learning_rate must be a positive number, got nan"),
        ({"warmup": 1.5}, "training.warmup is a share, from 0 to 1; got 1.5"),
        ({"spike": 0.5}, "training.spike must be above 1, or 0 for none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)
