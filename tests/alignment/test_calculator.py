"""Sums of three-digit numbers with and without the calculator, by one small model."""

import pytest
from small_policy import adder, new_policy_run


@pytest.mark.proof
def test_a_calculator_answers_what_the_model_cannot_add(tmp_path):
    """The model calls with the numbers copied from the prompt; without the tool it has to write the sum itself."""
    right = {}
    for tool in ("none", "calculator"):
        rollouts = {"samples": 4, "max_tokens": 21, "tool": tool}
        session = new_policy_run(
            tmp_path / tool, "grpo", adder(steps=120), method="dapo", rewards={"number": 1.0}, rollouts=rollouts
        )
        right[tool] = session.trainer.evaluate(part=True)["reward"]
    assert right["none"] < 0.1
    assert right["calculator"] > 0.3
