"""Rewards by name, each with a weight, as one function that says which answer failed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmfast.alignment.rewards import functions
from llmfast.alignment.rewards.functions import Reward

BY_NAME: dict[str, Reward] = {
    "exact": functions.exact,
    "number": functions.number,
    "math": functions.math,
    "gym": functions.gym,
    "position_match": functions.position_match,
    "think_format": functions.think_format,
    "brevity": functions.brevity,
    "tests": functions.tests,
}
NEEDS = {"math": "math_verify", "gym": "reasoning_gym"}
"""Libraries that rewards need; one that is missing is found before a run begins."""
OF_FORM = frozenset({"think_format", "brevity"})
"""Rewards that do not depend on the right answer, as those of ``regex:`` do not."""


class RewardError(ValueError):
    """A reward that raised or is not a finite number; says for which answer."""


class Rewarded(NamedTuple):
    """What answers are worth."""

    totals: list[float]
    """The weighted sums; of answers that are skipped, 0."""
    parts: dict[str, list[float]]
    """By the name of the reward, without its weight."""
    skipped: list[bool]
    """Where a reward failed."""


class Rewards:
    """A weighted sum of rewards.

    Args:
        weights: by name: one of ``BY_NAME``, ``regex:PATTERN``, ``model:FOLDER`` (a reward model),
            ``steps:FOLDER`` (a process reward model), or ``module:function`` for a function of yours.
        skip: leave out answers whose reward fails instead of raising.

    Raises:
        ValueError: no such reward, or rewards of form that together outweigh those of answers.
    """

    def __init__(self, weights: Mapping[str, float], *, skip: bool = False):
        check_weights(weights)
        self.weights, self.skip = dict(weights), skip
        self.functions = {name: named_reward(name) for name in weights}

    def __call__(
        self, prompt: str, tokens: Sequence[Sequence[int]], texts: Sequence[str], answer: Any, where: str
    ) -> Rewarded:
        """Of several answers to one prompt; ``where`` says which record it is.

        Raises:
            RewardError: a reward raised or is not a finite number, and is not to be skipped.
        """
        parts: dict[str, list[float]] = {name: [] for name in self.functions}
        skipped = [False] * len(texts)
        for place, (ids, text) in enumerate(zip(tokens, texts, strict=True)):
            for name, function in self.functions.items():
                value, failure = _value(function, prompt, ids, text, answer)
                if failure is not None:
                    if not self.skip:
                        raise RewardError(f"the reward {name} {failure} for sample {place} of {where}: {text[:200]!r}")
                    skipped[place] = True
                parts[name].append(value)
        totals = [
            0.0 if skipped[place] else sum(self.weights[name] * values[place] for name, values in parts.items())
            for place in range(len(texts))
        ]
        return Rewarded(totals, parts, skipped)


def _value(function: Reward, *arguments: Any) -> tuple[float, str | None]:
    """A reward and, if it failed, how."""
    try:
        value = float(function(*arguments))
    except ModuleNotFoundError:
        raise  # a library that is missing fails for every answer
    except Exception as error:
        return 0.0, f"raised {type(error).__name__} ({error})"
    return (value, None) if math.isfinite(value) else (0.0, f"is {value}")


def check_weights(weights: Mapping[str, float]) -> None:
    """Check that the rewards are named and that form does not outweigh answers.

    Raises:
        ValueError: they are not, or it does: a model would learn the form and no answers.
    """
    if not weights:
        raise ValueError("rewards is empty: name at least one, such as exact")
    form = sum(abs(weight) for name, weight in weights.items() if name in OF_FORM or name.startswith("regex:"))
    answers = sum(abs(weight) for name, weight in weights.items()) - form
    if answers and form >= answers:
        raise ValueError(
            f"rewards of form weigh {form:g} together and those of answers {answers:g}: a form without an answer would "
            "be worth as much as an answer; lower their weights"
        )


def named_reward(name: str) -> Reward:
    """The reward of a name, see ``Rewards``.

    Raises:
        ValueError: there is none.
        ModuleNotFoundError: a library that it needs is not installed.
    """
    if name in NEEDS:
        importlib.import_module(NEEDS[name])
    if name in BY_NAME:
        return BY_NAME[name]
    kind, _, rest = name.partition(":")
    if kind == "regex" and rest:
        return functions.matches(rest)
    if kind in ("model", "steps") and rest:
        from llmfast.alignment.rewards.model import model_reward, process_reward

        return (model_reward if kind == "model" else process_reward)(rest)
    try:
        found = getattr(importlib.import_module(kind), rest)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(BY_NAME)
        raise ValueError(
            f"rewards: {name!r} is neither one of {known}, regex:PATTERN, model:FOLDER and steps:FOLDER, nor "
            f"module:function: {error}"
        ) from None
    if not callable(found):
        raise ValueError(f"rewards: {name!r} is not a function")
    return found
