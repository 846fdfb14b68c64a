"""What a small model learns of 1,100 real preference pairs."""

import pytest
from shared_data import shared_data
from small_reader import QUIET, reader

from llmfast.alignment.config import PreferenceConfig, RewardConfig
from llmfast.alignment.preference import Preference
from llmfast.alignment.reward_model import RewardModeling
from llmfast.config import from_dict
from llmfast.training.session import new_session

pytestmark = pytest.mark.xdist_group("reader")  # made once


def run(folder, task, config_class, steps):
    """Figures of held-out pairs before and after training."""
    config = {
        "start": str(reader()),
        "data": {"sources": [str(shared_data("preference/preference_1100.json"))], "validation_fraction": 0.15},
        "training": {"steps": steps, "batch_size": 8, "learning_rate": 1e-3} | QUIET | {"optimizer": "adamw"},
    }
    lines = []
    session = new_session(folder / "run", from_dict(config_class, config), task=task, report=lines.append)
    assert any("6 with equal answers (the first: " in line and "record 123)" in line for line in lines)
    before = session.trainer.evaluate()
    for _ in range(steps):
        session.trainer.step()
    return before, session.trainer.evaluate()


def test_dpo_raises_margin_and_accuracy_and_does_not_make_chosen_answers_unlikely(tmp_path):
    before, after = run(tmp_path, Preference, PreferenceConfig, 60)
    assert before["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert after["accuracy"] > 0.6
    assert after["margin"] > before["margin"] + 0.3
    assert after["loss"] < before["loss"]
    assert after["chosen_log_probability"] > before["chosen_log_probability"] - 0.5
    assert after["rejected_log_probability"] < before["rejected_log_probability"]


def test_a_reward_model_tells_held_out_answers_apart(tmp_path):
    before, after = run(tmp_path, RewardModeling, RewardConfig, 90)
    assert before["accuracy"] == 0
    assert after["accuracy"] >= 0.65
    assert after["margin"] > 0
    assert abs(after["chosen_reward"] + after["rejected_reward"]) < 2
