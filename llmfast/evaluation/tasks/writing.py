"""Answers that a model writes out: generated through the engine, checked, and counted by pass@k."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmfast.data.chat.opening import saved_chat
from llmfast.evaluation.tasks import WritingTask
from llmfast.evaluation.tasks.asking import Asked, prompt_tokens_of
from llmfast.evaluation.tasks.figures import Figure, mean
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.opening import ends_of, runner_of
from llmfast.inference.sequence import Completion
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@dataclass(frozen=True)
class Writing:
    """How answers are generated."""

    samples: int = 1
    """Of each problem."""
    temperature: float = 0.0
    max_tokens: int | None = None
    """Of an answer; what is usual for the task if left out."""
    seed: int = 0
    truncate: bool = False
    """Cut the start off prompts that are too long."""
    chat: bool = False
    """Ask in a conversation, by the model's chat template."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples at temperature 0 would all be equal: give a temperature above 0")


def engine_of(path: Path, model: Decoder, tokenizer: Tokenizer, *, dtype: str | None = None) -> Engine:
    """An engine on a model that was opened from a folder (see ``open_on_device``), on the device where it is."""
    config = EngineConfig()
    runner = runner_of(model, config, dtype=dtype)
    return Engine(None, tokenizer, config, runner=runner, ends=ends_of(path, tokenizer))


def write(engine: Engine, task: WritingTask, asked: Sequence[Asked], how: Writing) -> list[list[Completion]]:
    """The answers to each problem.

    Raises:
        ValueError: a prompt that is longer than the model's context, without ``truncate``; or ``chat`` with a model
            that has no chat template.
        ModuleNotFoundError: a library that the task's checks need is missing.
    """
    assert engine.tokenizer is not None
    if task.library is not None:
        importlib.import_module(task.library)  # before hours of generation
    encoder = saved_chat(engine.tokenizer) if how.chat else None
    most = task.max_tokens if how.max_tokens is None else how.max_tokens
    prompts, settings = [], []
    for number, each in enumerate(asked):
        prompt = prompt_tokens_of(engine.tokenizer, each, each.question.prompt, encoder)
        if len(prompt) >= engine.limit and not how.truncate:
            raise ValueError(
                f"{each.where}: the prompt has {len(prompt)} tokens, and the model's context holds {engine.limit} with "
                "the answer: use fewer examples, or truncate to cut the start of such prompts off"
            )
        prompts.append(prompt)
        settings.append(
            Sampling(
                temperature=how.temperature,
                max_tokens=most,
                seed=random.Random(f"{how.seed}/{number}").getrandbits(63),
                stop=() if how.chat else task.stop,
                stop_tokens=() if encoder is None else (encoder.end_token,),
                truncate_prompt=how.truncate,
            )
        )
    return engine.generate(prompts, settings, samples=how.samples)


def check(
    task: WritingTask, asked: Sequence[Asked], replies: Sequence[Sequence[Completion]], *, chat: bool = False
) -> dict[str, list[list[bool]]]:
    """By each way to check, which answers to each problem are right."""
    return {
        name: [
            [is_right(each.question, reply.text, chat) for reply in written]
            for each, written in zip(asked, replies, strict=True)
        ]
        for name, is_right in task.checks.items()
    }


def figures(right: dict[str, list[list[bool]]]) -> dict[str, Figure]:
    """The mean of pass@k over problems, for each way to check: k is 1, 10 and 100, up to the number of samples."""
    samples = len(next(iter(right.values()))[0])
    counts = [k for k in (1, 10, 100) if k <= samples]
    return {
        f"{name}@{k}": mean([pass_at(k, len(each), sum(each)) for each in problems])
        for name, problems in right.items()
        for k in counts
    }


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of ``k`` answers is right, estimated without bias from more (Chen et al. 2021,
    arXiv:2107.03374).

    >>> pass_at(1, 4, 1), pass_at(2, 4, 2)
    (0.25, 0.8333333333333334)
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)
