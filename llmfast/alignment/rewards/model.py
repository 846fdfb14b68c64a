"""Rewards by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmfast.alignment.rewards.functions import Prompt, Reward
from llmfast.finetuning.predict import load_classifier


def model_reward(folder: str) -> Reward:
    """The reward that a model of ``llmfast reward`` gives a prompt with an answer, its end token included.

    It reads the tokens of the prompt and the answer as they are: the policy's tokenizer must be its own.

    Raises:
        ValueError: no reward model there.
    """
    model, tokenizer = load_classifier(Path(folder))
    if model.config.problem != "regression":
        raise ValueError(f"rewards: {folder} names labels: a reward model gives a number")

    @torch.no_grad()
    def reward(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
        ids = [*(prompt.tokens if isinstance(prompt, Prompt) else tokenizer.encode(prompt)), *tokens]
        if len(ids) > model.config.decoder.context:
            raise ValueError(f"{len(ids)} tokens are more than the reward model's context")
        return model(torch.tensor([ids]), torch.tensor([len(ids)])).logits.item()

    return reward
