"""The two orders of the columns of a head that the rotary embedding turns in pairs.

Ours has the two of a pair half a head apart, as transformers mostly does; in llama.cpp and Cohere they are neighbors.
A permutation of the rows of the products that give queries and keys leads from one to the other and changes no score.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmfast.models.config import DecoderConfig


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads · D, ...) of queries or keys whose pairs are neighbors, so that they are half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The inverse of ``half_split``."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def of_queries_and_keys(order: Callable[[Tensor, int], Tensor], qkv: Tensor, config: DecoderConfig) -> Tensor:
    """The rows of the fused product of attention, with ``order`` applied to those of queries and keys."""
    H, K, D = config.heads, config.kv_heads, config.head_width
    q, k, v = qkv.split([H * D, K * D, K * D])
    return torch.cat([order(q, H), order(k, K), v])
