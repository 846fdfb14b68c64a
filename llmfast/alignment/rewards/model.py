"""Rewards by a reward model, of whole answers or of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmfast.alignment.rewards.functions import Prompt, Reward
from llmfast.data.examples.steps import step_ends
from llmfast.finetuning.predict import load_classifier
from llmfast.models.classifier import SequenceClassifier
from llmfast.tokenizer import Tokenizer


def model_reward(folder: str) -> Reward:
    """The reward that a model of ``llmfast reward`` gives a prompt with an answer, its end token included.

    It reads the tokens of the prompt and the answer as they are: the policy's tokenizer must be its own.

    Raises:
        ValueError: no reward model there.
    """
    model, tokenizer = _reward_model(folder)

    @torch.no_grad()
    def reward(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
        ids, _ = _whole(model, tokenizer, prompt, tokens)
        return model(torch.tensor([ids]), torch.tensor([len(ids)])).logits.item()

    return reward


def process_reward(folder: str) -> Reward:
    """The lowest probability of a step of an answer, by a model of ``llmfast reward --data.form steps``.

    Steps are the lines of the answer. An answer without one is worth 0.

    Raises:
        ValueError: no reward model there.
    """
    model, tokenizer = _reward_model(folder)

    @torch.no_grad()
    def reward(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
        ids, start = _whole(model, tokenizer, prompt, tokens)
        ends = torch.zeros(1, len(ids), dtype=torch.bool)
        ends[0, [start + place for place in step_ends(tokens, tokenizer)]] = True
        if not ends.any():
            return 0.0
        return model(torch.tensor([ids]), torch.tensor([len(ids)]), ends=ends).logits.sigmoid().min().item()

    return reward


def _reward_model(folder: str) -> tuple[SequenceClassifier, Tokenizer]:
    model, tokenizer = load_classifier(Path(folder))
    if model.config.problem != "regression":
        raise ValueError(f"rewards: {folder} names labels: a reward model gives a number")
    return model, tokenizer


def _whole(
    model: SequenceClassifier, tokenizer: Tokenizer, prompt: str, tokens: Sequence[int]
) -> tuple[list[int], int]:
    """The tokens of the prompt and the answer, and where the answer begins."""
    asked = prompt.tokens if isinstance(prompt, Prompt) else tokenizer.encode(prompt)
    ids = [*asked, *tokens]
    if len(ids) > model.config.decoder.context:
        raise ValueError(f"{len(ids)} tokens are more than the reward model's context")
    return ids, len(asked)
