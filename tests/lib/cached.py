"""Rows of equal length that are read step by step through a cache."""

import torch

from llmfast.inference.runner import Chunk
from llmfast.inference.torch_runner import cached_step
from llmfast.models.cache import PagedCache


class CachedRows:
    """Reads rows of tokens behind those it has read; pages of different rows lie between each other."""

    def __init__(self, model, rows, page_size=16, dtype=None):
        weight = model.embedding.weight
        pages = -(-model.config.context // page_size)
        self.model, self.length = model, 0
        self.tables = [list(range(row, rows * pages, rows)) for row in range(rows)]
        self.cache = PagedCache(model.config, rows * pages, page_size, dtype or weight.dtype, weight.device)
        self.last = [None] * rows

    @torch.no_grad()
    def read(self, tokens):
        """Logits (B, S, V) of ``tokens`` (B, S)."""
        S = tokens.shape[1]
        rows = zip(tokens.tolist(), self.tables, self.last, strict=True)
        chunks = [Chunk(row, self.length, table, S, last, self.length + S) for row, table, last in rows]
        step, flat = cached_step(self.cache, chunks, self.model.config)
        self.length += S
        self.last = tokens[:, -1].tolist()
        return self.model(flat, cache=step).unflatten(0, tokens.shape)
