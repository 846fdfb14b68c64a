"""Policies learn to sort digits by their own answers where there is a signal, and only there."""

import pytest
import torch
from small_policy import new_policy_run, sorter

from llmfast.alignment.rewards.functions import position_match

pytestmark = pytest.mark.xdist_group("sorter")  # made once

ROLLOUTS = {"samples": 16, "max_tokens": 6, "max_batch": 256}
TRAINING = {"batch_size": 256, "learning_rate": 4e-4, "weight_decay": 0.0}


def run(folder, kind, **settings):
    begins = sorter(digits=4, steps=45)
    return new_policy_run(
        folder, kind, begins, rollouts=ROLLOUTS, training=TRAINING, evaluation_samples=4, **settings
    ).trainer


def test_sampled_answers_to_held_out_prompts_get_better(tmp_path):
    trainer = run(tmp_path, "grpo", method="dapo")
    before = trainer.evaluate()["reward"]
    for _ in range(40):
        trainer.step()
    assert trainer.evaluate()["reward"] > before + 0.06


@pytest.mark.proof
@pytest.mark.timeout(1200)  # half a minute, but minutes on a machine that is busy
def test_ppo_learns_to_sort_six_digits_and_keeps_it(tmp_path):
    """Trap: a value that is added to answers cut at their length pays for not ending them: rewards rise, then fall."""
    steps = 130
    trainer = new_policy_run(
        tmp_path,
        "ppo",
        sorter(digits=6, steps=50),
        rollouts={"samples": 8, "max_tokens": 7, "max_batch": 512, "minibatches": 2},
        training={
            "steps": steps, "batch_size": 256, "schedule": "linear", "warmup": 0.03, "weight_decay": 0.0,
            "final_learning_rate": 0.0,
        },
        gae=1.0,
        value_weight=0.1,
    ).trainer  # fmt: skip
    found = [trainer.step().figures for _ in range(steps)]
    rewards = [sum(each["reward"] for each in some) / 10 for some in (found[:10], found[-10:])]
    assert rewards[0] < 0.7
    assert rewards[1] > 0.8
    assert found[-1]["truncated"] < 0.1


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_without_a_signal_nothing_is_learned(tmp_path, kind):
    """The control: rewards that depend on the prompt alone say nothing of answers. GRPO leaves the weights as they are
    to the bit; PPO learns its value function."""
    settings = {"method": "dapo"} if kind == "grpo" else {"gae": 1.0, "value_weight": 0.1}
    trainer = run(tmp_path, kind, rewards={f"{__name__}:of_the_prompt": 1.0}, **settings)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    sorted_before = share_sorted(trainer)
    results = [trainer.step() for _ in range(3 if kind == "grpo" else 12)]
    assert {each.figures["no_signal"] for each in results} == {1.0}
    if kind == "grpo":
        assert {float(each.loss) for each in results} == {0.0}
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    else:
        assert share_sorted(trainer) < sorted_before + 0.05


def share_sorted(trainer):
    """The share of digits at their places in answers to the first held-out prompts."""
    sampler, split = trainer.task.rollouts.sample, trainer.task.prepared.validation
    records = [split[place] for place in range(32)]
    rollouts, _ = sampler(records, range(32), 4)
    found = [
        position_match("", each.tokens, each.text, records[place // 4].answer) for place, each in enumerate(rollouts)
    ]
    return sum(found) / len(found)


def of_the_prompt(prompt, tokens, text, answer):
    return float(len(prompt) + sum(map(ord, prompt)) % 7)
