"""Policies learn to sort digits by their own answers where there is a signal, and only there."""

import pytest
import torch
from small_policy import new_policy_run, sorter

pytestmark = pytest.mark.xdist_group("sorter")  # made once

ROLLOUTS = {"samples": 16, "max_tokens": 6, "max_batch": 256}
TRAINING = {"batch_size": 256, "learning_rate": 4e-4, "weight_decay": 0.0}


def run(folder, kind, **settings):
    begins = sorter(digits=4, steps=45)
    return new_policy_run(
        folder, kind, begins, rollouts=ROLLOUTS, training=TRAINING, evaluation_samples=4, **settings
    ).trainer


@pytest.mark.parametrize(("kind", "settings"), [("grpo", {"method": "dapo"}), ("ppo", {"value_weight": 0.1})])
def test_sampled_answers_to_held_out_prompts_get_better(tmp_path, kind, settings):
    trainer = run(tmp_path, kind, **settings)
    before = trainer.evaluate()["reward"]
    for _ in range(40):
        trainer.step()
    assert trainer.evaluate()["reward"] > before + 0.06


def test_without_a_signal_nothing_is_learned(tmp_path):
    """The control: rewards that depend on the prompt alone say nothing of answers."""
    trainer = run(tmp_path, "grpo", method="dapo", rewards={f"{__name__}:of_the_prompt": 1.0})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    results = [trainer.step() for _ in range(3)]
    assert {float(each.loss) for each in results} == {0.0}
    assert {each.figures["no_signal"] for each in results} == {1.0}
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def of_the_prompt(prompt, tokens, text, answer):
    return float(len(prompt) + sum(map(ord, prompt)) % 7)
