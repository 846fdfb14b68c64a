"""Policies learn to sort digits by their own answers, where there is a signal; long forms are in recipes."""

import numpy as np
import pytest
from small_policy import new_policy_run, sorter

pytestmark = pytest.mark.xdist_group("sorter")  # made once

TRAINING = {"batch_size": 256, "learning_rate": 4e-4}


def rewards(folder, kind, steps, **settings):
    rollouts = {"samples": 16, "max_tokens": 6, "max_batch": 256}
    session = new_policy_run(folder, kind, sorter(digits=4, steps=45), rollouts=rollouts, training=TRAINING, **settings)
    before = session.trainer.evaluate()["reward"]
    sampled = [session.trainer.step().figures["reward"] for _ in range(steps)]
    return before, sampled, session.trainer.evaluate()["reward"]


@pytest.mark.parametrize(("kind", "settings"), [("grpo", {"method": "dapo"}), ("ppo", {"value_weight": 0.1})])
def test_sampled_answers_get_better(tmp_path, kind, settings):
    before, sampled, after = rewards(tmp_path, kind, 40, **settings)
    print(kind, before, sampled[::10], after)
    assert after > before + 0.1
    assert np.mean(sampled[-5:]) > np.mean(sampled[:5]) + 0.1


def test_without_a_signal_nothing_is_learned(tmp_path):
    """The control: random rewards, which say nothing of answers."""
    before, sampled, after = rewards(tmp_path, "grpo", 30, method="dapo", rewards={f"{__name__}:chance": 1.0})
    del sampled
    assert after == pytest.approx(before, abs=1)


def chance(prompt, tokens, text, answer):
    return float(hash((prompt, text)) % 2)
