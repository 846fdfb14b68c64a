"""What a model would predict after each of its layers: the logit lens, and the tuned lens if one is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.visualization.residual import residual_stream
from llmfast.visualization.structure import batch_of
from llmfast.visualization.tuned_lens import TunedLens


class LensReading(NamedTuple):
    """Predictions by layer and position. Row 0 is of the embeddings, row i of what leaves layer i − 1; the last row is
    what the model itself predicts."""

    targets: Tensor
    """(S,) int64: the token that follows in the prompt; after the last token, the model's likeliest."""
    ranks: Tensor
    """(layers + 1, S) int64: the rank of the target, 1 for the likeliest token."""
    target_probabilities: Tensor
    """(layers + 1, S), its probability."""
    tokens: Tensor
    """(layers + 1, S, top) int64: the likeliest tokens, the likeliest first."""
    probabilities: Tensor
    """(layers + 1, S, top): theirs."""
    divergences: Tensor
    """(layers + 1, S): Kullback–Leibler divergence from what the model predicts, in nats."""


@torch.no_grad()
def logit_lens(model: nn.Module, tokens: Sequence[int], *, top: int = 5, lens: TunedLens | None = None) -> LensReading:
    """Predictions of the next token by layer: final norm and head applied to each layer's states (nostalgebraist 2020).

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers. Dropout is off meanwhile.
        tokens: the prompt.
        top: how many of the likeliest tokens to keep.
        lens: translates each layer's states first (Belrose et al. 2023).

    Raises:
        ValueError: no tokens, more than the context, or a lens of another shape than the model's.
    """
    stream = residual_stream(model, batch_of(model, tokens))
    final = stream.logits[0]
    targets = torch.cat((torch.as_tensor(tokens[1:], device=final.device), final[-1:].argmax(-1)))
    rows = []
    for place, state in enumerate(stream.states):
        translated = state if lens is None else lens(state, place)
        rows.append(_read(stream.read_out(translated)[0], final, targets, top))
    return LensReading(targets.cpu(), *(torch.stack(each).cpu() for each in zip(*rows, strict=True)))


def _read(logits: Tensor, final: Tensor, targets: Tensor, top: int) -> tuple[Tensor, ...]:
    """Of logits (S, V): the other fields of a ``LensReading``, without their first dimension."""
    log_probs = logits.log_softmax(-1)
    of_target = log_probs.gather(-1, targets[:, None])
    best, tokens = log_probs.topk(min(top, logits.shape[-1]), dim=-1)
    ranks = (log_probs > of_target).sum(-1) + 1
    divergences = F.kl_div(log_probs, final.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return ranks, of_target[:, 0].exp(), tokens, best.exp(), divergences
