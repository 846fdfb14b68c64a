"""Which tokens have similar embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from llmfast.visualization.structure import embedding_of, head_of, shape_of


@torch.no_grad()
def embedding_neighbors(
    model: nn.Module,
    tokens: Sequence[int],
    *,
    count: int = 10,
    of: Literal["embedding", "head"] = "embedding",
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens whose rows of the table are nearest to those of ``tokens`` (N), by the cosine of the angle.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers.
        tokens: whose neighbors; none is its own.
        count: how many of each.
        of: the table: what tokens are read as, or what predicts them.
        vocabulary: rows from here on are of no token; all rows are if left out.

    Returns:
        Ids (N, count) int64, the nearest first, and their cosines (N, count) float32.

    Raises:
        ValueError: a token outside the vocabulary, or a count below 1.
    """
    shape_of(model)  # refuses what is no language model
    table = (embedding_of(model) if of == "embedding" else head_of(model)).weight
    table = table[:vocabulary].float()
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if odd := [token for token in tokens if not 0 <= token < len(table)]:
        raise ValueError(f"token {odd[0]} is not one of the {len(table):,} of the model")
    lengths = table.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    index = torch.as_tensor(tokens, device=table.device)
    cosines = (table[index] @ table.mT) / lengths / lengths[index, None]
    cosines.scatter_(1, index[:, None], -torch.inf)
    best, places = cosines.topk(min(count, len(table) - 1), dim=-1)
    return places.cpu(), best.cpu()
