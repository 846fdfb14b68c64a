"""Rewards that read the text of an answer. All take (prompt, tokens, text, answer) and give a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from llmfast.data.examples.gym import gym_score
from llmfast.evaluation.answers.sandbox import code_of, run_limited
from llmfast.evaluation.answers.texts import equal_formulas, final_answer, last_number

Reward = Callable[[str, Sequence[int], str, Any], float]
"""(the prompt as text, the sampled tokens, their text, the right answer of the record) to a number."""


class Prompt(str):
    """The text of a prompt, which remembers its tokens."""

    tokens: list[int]

    def __new__(cls, text: str, tokens: Sequence[int]) -> Prompt:
        made = super().__new__(cls, text)
        made.tokens = list(tokens)
        return made


_THINK = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def exact(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 if the final answer is the right one, apart from spaces at its ends; else 0."""
    return float(final_answer(text) == final_answer(str(answer)))


def number(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 if the last number of the final answer equals that of the right one; else 0. 1,000 and 1000.0 are equal."""
    found, wanted = last_number(final_answer(text)), last_number(final_answer(str(answer)))
    return float(found is not None and found == wanted)


def think_format(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 for ``<think>...</think><answer>...</answer>`` and nothing else; else 0."""
    return float(_THINK.fullmatch(text) is not None)


def brevity(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 / (1 + tokens): less for longer answers."""
    return 1 / (1 + len(tokens))


def position_match(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """The share of the right answer's characters that the final answer has at the same place; 0 if it is longer."""
    found, wanted = final_answer(text), final_answer(str(answer))
    if not wanted or len(found) > len(wanted):
        return 0.0
    return sum(a == b for a, b in zip(found, wanted, strict=False)) / len(wanted)


def math(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 if the final answer is mathematically equal to the right one, by math-verify; else 0.

    In whatever thread (see ``equal_formulas``).
    """
    found, wanted = (f"${final_answer(str(each))}$" for each in (text, answer))
    return float(equal_formulas(found, wanted))


def tests(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """1 if the code in the text passes the tests in ``answer``, Python that raises an error where it does not; else 0.

    It runs under limits, see ``run_limited``.
    """
    return float(run_limited(f"{code_of(text)}\n\n{answer}\n") == 0)


def gym(prompt: str, tokens: Sequence[int], text: str, answer: Any) -> float:
    """What reasoning-gym's environment says of the final answer, from 0 to 1; ``answer`` says which task it is."""
    return gym_score(final_answer(text), answer)


def matches(pattern: str) -> Reward:
    """The reward that is 1 where the text has a part that a regular expression matches; else 0.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"rewards: {pattern!r} is no regular expression: {error}") from None
    return lambda prompt, tokens, text, answer: float(compiled.search(text) is not None)
