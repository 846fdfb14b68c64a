"""The distribution that a token is drawn from, its log-probabilities, and the noise that draws it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from llmfast.inference.config import Sampling
from llmfast.inference.controls import Controls, Matcher
from llmfast.kernels import cross_entropy, is_batch_invariant

SORTED_FIRST = (64, 1024)  # tokens; nucleus sampling seldom needs more of a vocabulary
NOISE_AT_ONCE = 2**18  # numbers in float64, 2 MiB

Place = tuple[int, int, int]
"""What the noise of a token depends on: seed, sample, and the token's position in its reply."""


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (N,) of ``tokens`` (N,) by ``logits`` (N, V), in float32.

    In batch-invariant mode they have the bits of ``-linear_cross_entropy(..., reduction="none")``, which training
    computes without logits.
    """
    if is_batch_invariant():
        return -cross_entropy(logits, tokens, reduction="none")
    # The same within rounding, in a quarter of the time that the checked operator takes for a small vocabulary.
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def sampling_log_probs(
    logits: Tensor,
    completion: Sequence[int],
    sampling: Sampling,
    *,
    prompt: Sequence[int] = (),
    ends: Collection[int] = (),
    matcher: Matcher | None = None,
) -> Tensor:
    """Log-probabilities (S,) of the tokens of a reply in the distributions that they were drawn from; differentiable.

    It computes what ``Completion.sampling_logprobs`` holds, from the same logits to the bit. At temperature 0 they are
    all 0.

    Args:
        logits: (S, V): those that the model gives for each token of the reply.
        completion: the S tokens of the reply.
        sampling: the settings of the request.
        prompt: tokens of the prompt, which ``repetition_penalty`` depends on.
        ends: the tokens that end a reply, which ``min_tokens`` depends on: ``Completion.ends``.
        matcher: of the constraint, at the start of a reply.
    """
    tokens = torch.tensor(completion, dtype=torch.int64, device=logits.device)
    if logits.ndim != 2 or len(logits) != len(tokens):
        raise ValueError(f"logits must be (tokens of the reply, V), got {tuple(logits.shape)} for {len(tokens)} tokens")
    if sampling.temperature == 0:
        return logits.new_zeros(len(tokens), dtype=torch.float32)
    logits = logits.float()
    controls = Controls(sampling, prompt, ends, matcher)
    if controls.change_something:
        rows = []
        for row, token in zip(logits, completion, strict=True):
            rows.append(controls.apply(row))
            controls.advance(token)
        logits = torch.stack(rows) if rows else logits
    return log_probs(distribution(logits, sampling), tokens)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (N, V) of what is drawn from: ``logits`` over the temperature, −∞ where a cut removes a token.

    A row depends on that row alone. The temperature must not be 0.
    """
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    least = _least_kept(logits.detach(), sampling)
    return logits if least is None else logits.masked_fill(logits < least, -torch.inf)


def _least_kept(logits: Tensor, sampling: Sampling) -> Tensor | None:
    """The smallest logit (N, 1) that is kept in each row; None without cuts."""
    vocabulary = logits.shape[-1]
    least = None
    if sampling.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
    top_k = sampling.top_k if sampling.top_k is not None and sampling.top_k < vocabulary else None
    top_p = sampling.top_p if sampling.top_p is not None and sampling.top_p < 1 else None
    if top_k is None and top_p is None:
        return least
    if top_p is None:
        found = logits.topk(top_k).values[:, -1:]
    elif top_k is not None:
        values = logits.topk(top_k).values
        found = _nucleus(values.double().log_softmax(-1), values, top_p)[0]
    else:
        log_p = logits.double().log_softmax(-1)
        for count in (*(each for each in SORTED_FIRST if each < vocabulary), vocabulary):
            largest = logits.sort(-1, descending=True) if count == vocabulary else logits.topk(count)
            found, is_enough = _nucleus(log_p.gather(-1, largest.indices), largest.values, top_p)
            if is_enough:
                break
    return found if least is None else torch.maximum(found, least)


def _nucleus(log_p: Tensor, values: Tensor, top_p: float) -> tuple[Tensor, bool]:
    """Of the largest logits of each row in descending order, the last that is kept (N, 1); and whether these largest
    reach ``top_p`` in all rows."""
    reached = log_p.exp().cumsum(-1)
    # A token is cut when those before it already reach top_p: the one that crosses the line stays.
    kept = (reached < top_p).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, kept), bool((reached[:, -1] >= top_p).all())


def draw(logits: Tensor, places: Sequence[Place]) -> Tensor:
    """Tokens (N,) drawn from the distributions of ``logits`` (N, V), each by noise that its place determines.

    The largest of log p − log E with E exponentially distributed is distributed by p (Gumbel). Equal noise on two
    distributions that are alike mostly draws the same token, which speculation makes use of. A token depends on its row
    and place alone.
    """
    if not places:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    rows = max(1, NOISE_AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(rows), range(0, len(places), rows), strict=True)
    return torch.cat([_draw(part, places[first : first + rows]) for part, first in parts])


def _draw(logits: Tensor, places: Sequence[Place]) -> Tensor:
    noise = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    for row, place in zip(noise, places, strict=True):
        _fill_with_exponentials(row, place)
    return (logits.double() - noise.clamp_(min=1e-300).log_()).argmax(-1)


def _fill_with_exponentials(row: Tensor, place: Place) -> None:
    seed, sample, position = place
    if row.device.type == "cpu":
        key = np.array([seed, sample], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=position << 64))
        generator.standard_exponential(out=row.numpy())
        return
    key = np.random.SeedSequence([seed, sample, position]).generate_state(1, np.uint64)[0]
    row.exponential_(generator=torch.Generator(row.device).manual_seed(int(key) >> 1))
