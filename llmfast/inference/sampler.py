"""From logits to the next tokens of sequences, each by its own settings, with their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfast.inference.config import Sampling
from llmfast.inference.controls import Controls
from llmfast.inference.distribution import distribution, draw, log_probs


@dataclass
class Row:
    """The place of a token that is to be drawn."""

    sampling: Sampling
    controls: Controls
    seed: int
    sample: int
    position: int
    """Index of the token in its reply."""


@dataclass
class Drawn:
    """A token that was drawn."""

    token: int
    logprob: float
    """By the plain logits of the model."""
    sampling_logprob: float
    """In the distribution that it was drawn from: 0 at temperature 0."""
    alternatives: dict[int, float] | None = None
    """The likeliest tokens by the plain logits, if they are asked for."""


def choose(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """The next token for each row of ``logits`` (N, V).

    Raises:
        ValueError: logits that are not numbers, as those of a model that has diverged.
    """
    changed = logits
    if any(row.controls.change_something for row in rows):
        changed = torch.stack(
            [
                row.controls.apply(each) if row.controls.change_something else each
                for each, row in zip(logits, rows, strict=True)
            ]
        )
    drawn_from = changed
    groups = _by_settings(rows)
    if any(_changes_distribution(sampling) for sampling, _ in groups):
        drawn_from = changed.clone() if len(groups) > 1 else changed
        for sampling, places in groups:
            if _changes_distribution(sampling):
                found = distribution(changed[places] if len(groups) > 1 else changed, sampling)
                if len(groups) == 1:
                    drawn_from = found
                else:
                    drawn_from[places] = found
    chosen = drawn_from.argmax(-1)
    if drawn := [place for place, row in enumerate(rows) if row.sampling.temperature != 0]:
        places = [(rows[place].seed, rows[place].sample, rows[place].position) for place in drawn]
        chosen[drawn] = draw(drawn_from if len(drawn) == len(rows) else drawn_from[drawn], places)
    plain = log_probs(logits, chosen)
    of_sampling = plain if drawn_from is logits else log_probs(drawn_from, chosen)
    results = []
    for place, (token, logprob, sampling_logprob) in enumerate(
        zip(chosen.tolist(), plain.tolist(), of_sampling.tolist(), strict=True)
    ):
        row = rows[place]
        if logprob != logprob or sampling_logprob != sampling_logprob:
            raise ValueError("the model's logits hold NaN or infinity: it has diverged, or its weights are damaged")
        greedy = row.sampling.temperature == 0
        wanted = row.sampling.logprobs
        found = None if wanted is None else alternatives(logits[place], wanted)
        results.append(Drawn(token, logprob, 0.0 if greedy else sampling_logprob, found))
    return results


def alternatives(logits: Tensor, count: int) -> dict[int, float]:
    """The ``count`` likeliest tokens by logits (V,), likeliest first, with their log-probabilities."""
    values, tokens = logits.double().log_softmax(-1).topk(min(count, len(logits)))
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


def _changes_distribution(sampling: Sampling) -> bool:
    cuts = sampling.top_k is not None or sampling.top_p is not None or bool(sampling.min_p)
    return sampling.temperature != 0 and (sampling.temperature != 1 or cuts)


def _by_settings(rows: Sequence[Row]) -> list[tuple[Sampling, list[int]]]:
    """The settings that occur, and the rows of each."""
    found: dict[tuple, tuple[Sampling, list[int]]] = {}
    for place, row in enumerate(rows):
        sampling = row.sampling
        key = sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        found.setdefault(key, (sampling, []))[1].append(place)
    return list(found.values())
