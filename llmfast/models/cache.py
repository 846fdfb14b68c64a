"""Keys and values of the tokens already seen, so that generating one more costs one position, not all."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfast.models.config import DecoderConfig

FIRST_CAPACITY = 256  # positions


class LayerCache:
    """One block's keys and values, (B, capacity, K, D) each, filled from the left; the capacity doubles when full."""

    def __init__(self, config: DecoderConfig, batch: int, dtype: torch.dtype, device: torch.device):
        self.limit = config.context
        shape = (batch, min(self.limit, FIRST_CAPACITY), config.kv_heads, config.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k`` and ``v`` (B, S, K, D) behind what is held; return views of all so far (B, T, K, D)."""
        end = self.length + k.shape[1]
        if end > self.keys.shape[1]:
            capacity = min(self.limit, max(end, 2 * self.keys.shape[1]))
            self.keys, self.values = _grown(self.keys, capacity), _grown(self.values, capacity)
        self.keys[:, self.length : end] = k
        self.values[:, self.length : end] = v
        self.length = end
        return self.keys[:, :end], self.values[:, :end]


class KVCache:
    """The caches of all blocks of a decoder for a batch of sequences of equal length."""

    def __init__(self, config: DecoderConfig, batch: int, dtype: torch.dtype, device: torch.device):
        self.layers = [LayerCache(config, batch, dtype, device) for _ in range(config.layers)]
        self.length = 0
        self.last_embedding: Tensor | None = None  # (B, 1, E) of the last token, where the model smears


def _grown(held: Tensor, capacity: int) -> Tensor:
    larger = held.new_zeros((held.shape[0], capacity, *held.shape[2:]))
    larger[:, : held.shape[1]] = held
    return larger
