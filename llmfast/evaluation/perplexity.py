"""How well a model predicts held-out text: loss per token, and bits per byte, which no tokenizer can flatter."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmfast.data.batch import IGNORED
from llmfast.data.shards import TokenShards
from llmfast.evaluation.team import ALONE, Team
from llmfast.models.decoder import Decoder

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of UTF-8 text: loss / ln 2 · tokens per byte (end-of-text tokens count as tokens of no bytes)."""
    tokens: int


@torch.no_grad()
def evaluate(
    model: Decoder,
    shards: TokenShards,
    *,
    stride: int | None = None,
    max_tokens: int | None = None,
    autocast: contextlib.AbstractContextManager | None = None,
    team: Team = ALONE,
) -> Evaluation:
    """Mean loss over the tokens of ``shards``, each predicted once.

    Windows of the model's context start every ``stride`` tokens and a window scores only what the one before did not:
    with ``stride`` equal to the context (the default) windows do not overlap and their first tokens are predicted
    from little; a smaller stride gives every token at least context − stride tokens to be predicted from.
    With ``max_tokens`` it is the mean over about as many, in windows spread evenly: documents stand in the order of
    their names, so that the first of them would be a sample of one kind. The processes of a ``team`` take turns with
    the batches, and all get the result of one: it is summed in the same order.
    """
    context = model.config.context
    stride = stride or context
    if not 0 < stride <= context:
        raise ValueError(f"stride must be from 1 to the model's context {context}, got {stride}")
    count = len(shards) - 1
    device = next(model.parameters()).device
    starts = range(0, max(1, count - (context - stride)), stride)
    if max_tokens is not None:
        starts = _spread(starts, max(1, max_tokens // stride))
    per_batch = max(1, BATCH_TOKENS // context)

    def measure(batch: Sequence[int]) -> tuple[float, int]:
        """Nats and targets of the windows that start there."""
        rows = [_window(shards, start, context, stride, count) for start in batch]
        tokens, targets = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*rows, strict=True))
        with model.evaluating(), autocast or contextlib.nullcontext():
            loss = model(tokens, targets)
        scored = int((targets != IGNORED).sum())
        return float(loss) * scored, scored

    batches = [starts[first : first + per_batch] for first in range(0, len(starts), per_batch)]
    nats, scored = map(sum, zip(*team.figures(measure, batches, 2), strict=True))
    loss = nats / scored
    return Evaluation(loss, loss / math.log(2) * len(shards) / shards.text_bytes, int(scored))


def _spread(values: Sequence[int], wanted: int) -> Sequence[int]:
    """``wanted`` of the values at even distances, or all if there are no more."""
    if wanted >= len(values):
        return values
    return [values[index * len(values) // wanted] for index in range(wanted)]


def _window(shards: TokenShards, start: int, context: int, stride: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of one window; what is past the end or was scored before is padded or ignored."""
    tokens = np.zeros(context, np.int64)
    targets = np.full(context, IGNORED, np.int64)
    length = min(context, count - start)
    window = shards.read(start, length + 1)
    tokens[:length] = window[:-1]
    new = 0 if start == 0 else context - stride
    targets[new:length] = window[new + 1 :]
    return tokens, targets
