"""Log-probabilities of continuations, many at once: what multiple choice, LAMBADA and perplexity are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmfast.evaluation.team import ALONE, Team
from llmfast.inference.prompts import beginning
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

BATCH_TOKENS = 8192
GREEDY_ROWS = 256  # logits held at once to find the likeliest tokens


class Pair(NamedTuple):
    """Token ids of which ``continuation`` is scored after ``context``; neither may be empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """What a model makes of a continuation."""

    log_prob: float
    """Natural logarithm of its probability after the context: the sum over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The tokens of ``context + continuation``, divided where those of the context alone end.

    Before the context stand the tokens that begin a text for this tokenizer, as in generation; before a continuation
    without a context, always one (``beginning_of_text``). Spaces at the end of the context are moved to the
    continuation, where tokenizers put them, as in EleutherAI's lm-evaluation-harness.

    Raises:
        ValueError: the continuation has no token of its own.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    if context:
        text = tokenizer.encode_ordinary(context)
        after = tokenizer.encode_ordinary(context + continuation)[len(text) :]
        before = [*beginning(tokenizer), *text]
    else:
        before, after = [beginning_of_text(tokenizer)], tokenizer.encode_ordinary(continuation)
    if not after:
        raise ValueError(f"the continuation {continuation!r} has no tokens of its own")
    return Pair(before, after)


def beginning_of_text(tokenizer: Tokenizer) -> int:
    """The token that a text without a context is predicted from: the one that begins a prompt in generation, or the
    end-of-text token where none does.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if begin := beginning(tokenizer):
        return begin[-1]
    try:
        return tokenizer.eot_token
    except KeyError as error:
        raise ValueError(f"a text cannot be scored from its beginning: {error.args[0]}") from None


def windows(tokens: Sequence[int], context: int, stride: int) -> Iterator[Pair]:
    """Pairs that score every token but the first exactly once.

    Windows of ``context`` tokens start every ``stride`` tokens, and each scores what the one before did not, so that
    a token is predicted from at least ``context - stride`` tokens before it where there are as many.

    >>> [(pair.context, pair.continuation) for pair in windows([0, 1, 2, 3, 4], context=3, stride=2)]
    [([0], [1, 2, 3]), ([2, 3], [4])]

    Raises:
        ValueError: the stride is not from 1 to the context.
    """
    if not 0 < stride <= context:
        raise ValueError(f"stride must be from 1 to the model's context {context}, got {stride}")
    scored = 1
    for start in range(0, len(tokens), stride):
        end = min(start + context + 1, len(tokens))
        if scored < end:
            yield Pair(tokens[start:scored], tokens[scored:end])
            scored = end


@torch.no_grad()
def log_likelihoods(
    model: Decoder, pairs: Sequence[Pair], *, truncate: bool = False, team: Team = ALONE
) -> list[Likelihood]:
    """The likelihood of each continuation, in the order of ``pairs``.

    Pairs of similar length share a batch, padded on the right. The output head reads only the states that predict a
    token of a continuation, and logits are never held for more than 256 of them.

    Args:
        model: the model, in evaluation or training; dropout is off.
        pairs: what to score.
        truncate: cut what the model cannot hold of a context off at its start.
        team: the processes that share the batches out; all get the same result.

    Raises:
        ValueError: a pair that is longer than the model's context, without ``truncate``; or a continuation that is.
    """
    rows = [_row(number, pair, model.config.context, truncate) for number, pair in enumerate(pairs)]
    batches = _batches([len(row) for row in rows])
    if not batches:
        return []

    def measure(batch: Sequence[int]) -> list[float]:
        figures = _measure(model, [(rows[number], len(pairs[number].continuation)) for number in batch])
        return [*figures, *[0.0] * (width - len(figures))]

    width = 2 * max(map(len, batches))
    found = team.figures(measure, batches, width)
    results: list[Likelihood] = [Likelihood(0.0, False)] * len(rows)
    for batch, figures in zip(batches, found, strict=True):
        for place, number in enumerate(batch):
            results[number] = Likelihood(figures[2 * place], bool(figures[2 * place + 1]))
    return results


def _row(number: int, pair: Pair, context: int, truncate: bool) -> list[int]:
    """All tokens of a pair, of which the last is only predicted."""
    if not pair.context or not pair.continuation:
        raise ValueError(f"pair {number} has an empty {'continuation' if pair.context else 'context'}")
    row = [*pair.context, *pair.continuation]
    if len(pair.continuation) > context:
        raise ValueError(
            f"a continuation of {len(pair.continuation)} tokens (pair {number}) does not fit the model's context "
            f"of {context}"
        )
    if len(row) - 1 > context and not truncate:
        raise ValueError(
            f"a prompt and its continuation have {len(row)} tokens (pair {number}), more than the model's context "
            f"{context} holds: use truncate to cut the start of such prompts off"
        )
    return row[-context - 1 :]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places, the longest first, in batches of at most ``BATCH_TOKENS`` tokens with padding (or of one row)."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= BATCH_TOKENS:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _measure(model: Decoder, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Log-probability, and 1 or 0 for greedy, of the last tokens of each (row, how many)."""
    device = next(model.parameters()).device
    longest = max(len(row) for row, _ in rows) - 1
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    places, targets = [], []
    for number, (row, count) in enumerate(rows):
        tokens[number, : len(row) - 1] = torch.tensor(row[:-1])
        last = number * longest + len(row) - 1
        places += range(last - count, last)
        targets += row[-count:]
    wanted = torch.tensor(targets, device=device)
    index = torch.tensor(places, device=device)

    def score(states: Tensor) -> tuple[Tensor, Tensor]:
        predicting = states.flatten(0, 1)[index]
        losses = model.losses_of(predicting.unsqueeze(0), wanted.unsqueeze(0)).flatten()
        return losses, _is_likeliest(model, predicting, wanted)

    with model.evaluating():
        losses, likeliest = model(tokens.to(device), of_states=score).result
    figures: list[float] = []
    counts = [count for _, count in rows]
    for nats, hits in zip(losses.double().cpu().split(counts), likeliest.cpu().split(counts), strict=True):
        figures += [-nats.sum().item(), float(hits.all())]
    return figures


def _is_likeliest(model: Decoder, states: Tensor, targets: Tensor) -> Tensor:
    """Whether each target (N,) is the likeliest token after a state (N, E)."""
    chunks = zip(states.split(GREEDY_ROWS), targets.split(GREEDY_ROWS), strict=True)
    vocab_size = model.config.vocab_size
    return torch.cat([model.head(chunk)[..., :vocab_size].argmax(-1) == wanted for chunk, wanted in chunks])
