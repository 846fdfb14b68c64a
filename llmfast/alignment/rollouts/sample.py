"""Sampling rollouts with the inference engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llmfast.alignment.rollouts.rollout import Rollout
from llmfast.alignment.rollouts.tools import Tool
from llmfast.data.order import random_integer
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine

SEED_BITS = 63


def prompt_seed(seed: int, prompt: int) -> int:
    """What decides the noise of all samples of the ``prompt``-th prompt of a run."""
    return random_integer((seed, prompt)) >> (64 - SEED_BITS)


def sample_rollouts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    samples: int,
    seeds: Sequence[int],
    *,
    tool: Tool | None = None,
) -> list[list[Rollout]]:
    """``samples`` answers to each prompt.

    The noise of a token depends on (the prompt's seed, the sample, the position) alone: neither on who shares the batch
    nor on how many processes there are. The samples of a prompt share its keys and values.

    Args:
        engine: of the policy.
        prompts: as tokens.
        sampling: temperature, cuts, stops, and ``max_tokens``, the most tokens of an answer, a tool's included.
        samples: of each prompt.
        seeds: of each prompt.
        tool: what the policy may call.

    Raises:
        ValueError: settings whose distribution training could not compute again, or what the engine refuses.
    """
    check_sampling(sampling)
    assert sampling.max_tokens is not None
    if tool is not None:
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, tool.stop))
    own = [dataclasses.replace(sampling, seed=seed) for seed in seeds]
    groups = engine.generate(prompts, own, samples=samples)
    found = [[Rollout(list(prompt)) for _ in range(samples)] for prompt in prompts]
    waiting = []
    for prompt, (rollouts, completions) in enumerate(zip(found, groups, strict=True)):
        for sample, (rollout, completion) in enumerate(zip(rollouts, completions, strict=True)):
            if _extend(rollout, completion, engine, tool, sampling.max_tokens):
                waiting.append((rollout, seeds[prompt], sample))
    turn = 0
    while waiting:  # ends: every turn adds at least one token to each, and max_tokens bounds them
        turn += 1
        again = [
            dataclasses.replace(
                sampling,
                seed=random_integer((seed, sample, turn)) >> (64 - SEED_BITS),
                max_tokens=sampling.max_tokens - len(rollout.tokens),
            )
            for rollout, seed, sample in waiting
        ]
        replies = engine.generate([rollout.prompt + rollout.tokens for rollout, _, _ in waiting], again)
        waiting = [
            each
            for each, (completion,) in zip(waiting, replies, strict=True)
            if _extend(each[0], completion, engine, tool, sampling.max_tokens)
        ]
    return found


def _extend(rollout: Rollout, completion, engine: Engine, tool: Tool | None, max_tokens: int) -> bool:
    """Add what was sampled, and a tool's result after a call; whether the answer continues."""
    rollout.add(completion.tokens, completion.sampling_logprobs, completion.logprobs)
    ended = completion.stop_reason in engine.ends
    spoken = rollout.tokens[:-1] if ended else rollout.tokens
    rollout.text = engine.tokenizer.decode(spoken) if engine.tokenizer is not None else ""
    stopped = completion.finish_reason == "stop"
    rollout.is_truncated = not stopped
    if tool is None or not stopped or completion.stop_reason != tool.stop:
        return False
    called = tool.call.search(rollout.text)
    if called is not None:
        result = engine.tokenizer.encode_ordinary(tool.result(called[1]))
        rollout.add_result(result[: max_tokens - len(rollout.tokens)])
        rollout.text = engine.tokenizer.decode(rollout.tokens)
    rollout.is_truncated = len(rollout.tokens) >= max_tokens
    return not rollout.is_truncated


def check_sampling(sampling: Sampling) -> None:
    """Check that training can compute the distribution again, from the tokens alone.

    Raises:
        ValueError: greedy sampling, which has no distribution, or settings that change logits by what was said before.
    """
    if not sampling.temperature > 0:
        raise ValueError("rollouts.temperature must be above 0: all samples of a greedy policy are alike")
    plain = Sampling()
    changed = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "constraint")
    for name in changed:
        if getattr(sampling, name) != getattr(plain, name):
            raise ValueError(f"rollouts cannot be sampled with {name}: training computes other probabilities")
