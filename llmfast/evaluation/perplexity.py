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
from llmfast.tokenizer import Tokenizer

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of UTF-8 text: nats / ln 2 / bytes (end-of-text tokens are tokens of no bytes)."""
    tokens: int


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, (V,) int64; 0 for special tokens and for ids that are no token."""
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    special = {tokenizer.encode_single_token(each) for each in tokenizer.special_tokens_set}
    for token in range(tokenizer.n_vocab):
        with contextlib.suppress(KeyError):
            counts[token] = 0 if token in special else len(tokenizer.decode_single_token_bytes(token))
    return counts


@torch.no_grad()
def evaluate(
    model: Decoder,
    shards: TokenShards,
    *,
    stride: int | None = None,
    max_tokens: int | None = None,
    token_bytes: np.ndarray | None = None,
    autocast: contextlib.AbstractContextManager | None = None,
    team: Team = ALONE,
) -> Evaluation:
    """Mean loss over the tokens of ``shards``, each predicted once.

    Windows of the model's context start every ``stride`` tokens and a window scores only what the one before did not:
    with ``stride`` equal to the context (the default) windows do not overlap and their first tokens are predicted
    from little; a smaller stride gives every token at least context − stride tokens to be predicted from.
    With ``max_tokens`` it is the mean over about as many, in windows spread evenly: documents stand in the order of
    their names, so that the first of them would be a sample of one kind. Bits per byte are then over the bytes of the
    tokens that were scored, by ``token_bytes`` (``bytes_of_tokens``); without it, and over all tokens, they are over
    those of the whole text, of which each token counts as the mean of all. The processes of a ``team`` take turns with
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

    def measure(batch: Sequence[int]) -> tuple[float, int, int]:
        """Nats, targets and their bytes of the windows that start there."""
        rows = [_window(shards, start, context, stride, count) for start in batch]
        tokens, targets = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*rows, strict=True))
        with model.evaluating(), autocast or contextlib.nullcontext():
            loss = model(tokens, targets)
        counted = targets[targets != IGNORED].cpu().numpy()
        return float(loss) * len(counted), len(counted), 0 if token_bytes is None else int(token_bytes[counted].sum())

    batches = [starts[first : first + per_batch] for first in range(0, len(starts), per_batch)]
    nats, scored, size = map(sum, zip(*team.figures(measure, batches, 3), strict=True))
    if max_tokens is None or not size:
        size = scored / len(shards) * shards.text_bytes
    return Evaluation(nats / scored, nats / math.log(2) / size, int(scored))


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
