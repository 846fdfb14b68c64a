"""Log-probabilities of continuations, many at once: what multiple choice, LAMBADA and perplexity are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmfast.evaluation.prefixes import Forest, apart, forests, read_levels, read_padded
from llmfast.evaluation.team import ALONE, Team
from llmfast.inference.prompts import beginning
from llmfast.models.cache import PagedCache
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

BATCH_TOKENS = 8192
HEAD_ROWS = 256  # logits held at once
PAGE = 16  # tokens in a page of the cache


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
    model: Decoder, pairs: Sequence[Pair], *, truncate: bool = False, share: bool = False, team: Team = ALONE
) -> list[Likelihood]:
    """The likelihood of each continuation, in the order of ``pairs``.

    Pairs of similar length share a batch. The output head reads only the states that predict a token of a continuation,
    and logits are never held for more than 256 of them.

    Args:
        model: the model, in evaluation or training; dropout is off.
        pairs: what to score.
        truncate: cut what the model cannot hold of a context off at its start.
        share: compute what pairs share at their beginning once, such as a question before its answers. Only for one
            process, since the forward passes then depend on the pairs.
        team: the processes that share the batches out; all get the same result.

    Raises:
        ValueError: a pair that is longer than the model's context, without ``truncate``; a continuation that is; or
            ``share`` with several processes.
    """
    if share and team.share.count > 1:
        raise ValueError(
            f"share must be False for {team.share.count} processes: they must call the model equally often"
        )
    rows = [_row(number, pair, model.config.context, truncate) for number, pair in enumerate(pairs)]
    scored = [len(pair.continuation) for pair in pairs]
    # Frequencies that depend on the length of a row are others for rows that begin alike, and for a row with padding.
    stretches = model.config.rope_scaling.kind == "dynamic"
    batches = list((forests if share and not stretches else apart)([row[:-1] for row in rows], BATCH_TOKENS))
    if not batches:
        return []
    cache = _cache(model, max(batch.pages(PAGE) for batch in batches)) if share or stretches else None

    def measure(batch: Forest) -> list[float]:
        figures = _measure(model, cache, batch, rows, scored)
        return [*figures, *[0.0] * (width - len(figures))]

    width = 2 * max(len(batch.rows) for batch in batches)
    found = team.figures(measure, batches, width)
    results: list[Likelihood] = [Likelihood(0.0, False)] * len(rows)
    for batch, figures in zip(batches, found, strict=True):
        for place, number in enumerate(batch.rows):
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


def _cache(model: Decoder, pages: int) -> PagedCache:
    weight = model.embedding.weight
    return PagedCache(model.config, pages, PAGE, weight.dtype, weight.device, model.blocks[0].attention.kv_heads)


def _measure(
    model: Decoder, cache: PagedCache | None, batch: Forest, rows: Sequence[list[int]], scored: Sequence[int]
) -> list[float]:
    """Log-probability of the last ``scored`` tokens of each row of a batch, and 1 or 0 for greedy."""
    device = model.embedding.weight.device
    nats = torch.zeros(len(batch.rows), dtype=torch.float64, device=device)
    misses = torch.zeros_like(nats)
    with model.evaluating():
        for level in [read_padded(batch, device)] if cache is None else read_levels(cache, batch, model.config):
            # For each token to be predicted: the state that predicts it, the token, and whose it is.
            index, wanted, owner = (
                torch.tensor(
                    [
                        (level.first[id(segment)] + place - segment.past, rows[number][place + 1], at)
                        for at, (number, path) in enumerate(zip(batch.rows, batch.paths, strict=True))
                        for segment in path[level.number : level.number + 1]
                        for place in range(max(segment.past, len(rows[number]) - 1 - scored[number]), segment.end)
                    ],
                    dtype=torch.int64,
                    device=device,
                )
                .reshape(-1, 3)
                .unbind(1)
            )

            def score(states: Tensor, index: Tensor = index, wanted: Tensor = wanted) -> tuple[Tensor, Tensor]:
                return _score(model, states.flatten(0, 1), index, wanted)

            losses, likeliest = model(level.tokens, cache=level.step, of_states=score).result
            nats.index_add_(0, owner, losses)
            misses.index_add_(0, owner, (~likeliest).double())
    figures = torch.stack([-nats, (misses == 0).double()], dim=1)
    return figures.flatten().tolist()


def _score(model: Decoder, states: Tensor, index: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each target (N,) after the state (E,) at its index, and whether it is the likeliest token.

    Several continuations are predicted from one state where they have a context in common, or begin alike; its logits
    are computed once.
    """
    read, place = index.unique(return_inverse=True)
    losses = torch.empty(len(targets), dtype=torch.float64, device=states.device)
    likeliest = torch.empty(len(targets), dtype=torch.bool, device=states.device)
    for start in range(0, len(read), HEAD_ROWS):
        few = states[read[start : start + HEAD_ROWS]]
        of_few = ((place >= start) & (place < start + len(few))).nonzero().squeeze(1)
        row, wanted = place[of_few] - start, targets[of_few]
        logits = model.logits_of(few)
        likeliest[of_few] = logits.argmax(-1)[row] == wanted
        # Logits in 16 bits are rounded; the loss is computed without that.
        if logits.itemsize < 4:
            losses[of_few] = model.losses_of(few[row].unsqueeze(0), wanted.unsqueeze(0)).flatten().double()
        else:
            losses[of_few] = -logits.log_softmax(-1)[row, wanted].double()
    return losses, likeliest
