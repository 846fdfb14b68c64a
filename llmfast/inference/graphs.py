"""Steps in which every sequence reads one token, replayed from CUDA graphs: one launch in place of hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmfast.inference.runner import Chunk
from llmfast.models.cache import CachedStep, Group, PagedCache


class StaticStep:
    """A step of ``size`` tokens, one of each sequence, in tensors that stay where they are.

    Rows that are not needed read and write a page that no sequence has.

    Args:
        model, cache: as of the runner.
        size: sequences.
        spare_page: the page for rows that are not needed.
    """

    def __init__(self, model: nn.Module, cache: PagedCache, size: int, spare_page: int):
        self.model, self.size, self.page_size, self.spare_page = model, size, cache.page_size, spare_page
        device, context = cache.layers[0].keys.device, model.config.context
        pages = -(-context // cache.page_size)
        self.tokens = torch.zeros(size, 1, dtype=torch.int64, device=device)
        group = Group(
            rows=slice(0, size),
            queries=1,
            page_table=torch.full((size, pages), spare_page, dtype=torch.int32, device=device),
            lengths=torch.ones(size, dtype=torch.int32, device=device),
            longest=context,
            shortest=1,
            page_size=cache.page_size,
        )
        self.step = CachedStep(
            cache=cache,
            groups=[group],
            positions=torch.zeros(size, 1, dtype=torch.int64, device=device),
            places=torch.full((size,), spare_page * cache.page_size, dtype=torch.int64, device=device),
            previous=torch.full((size, 1), -1, dtype=torch.int64, device=device) if model.config.smear else None,
            reach=None,
            outputs=torch.arange(size, device=device),
            longest=context,
        )

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Write the chunks, one token each, into the tensors."""
        rest, size = self.size - len(chunks), self.page_size
        group, step = self.step.groups[0], self.step
        pages, spare = group.page_table.shape[1], self.spare_page
        places = [chunk.blocks[chunk.past // size] * size + chunk.past % size for chunk in chunks]
        tables = [[*chunk.blocks[:pages], *[spare] * (pages - len(chunk.blocks))] for chunk in chunks]
        values = [
            (self.tokens, [[chunk.tokens[0]] for chunk in chunks] + [[0]] * rest),
            (step.positions, [[chunk.past] for chunk in chunks] + [[0]] * rest),
            (step.places, places + [spare * size] * rest),
            (group.lengths, [chunk.past + 1 for chunk in chunks] + [1] * rest),
            (group.page_table, tables + [[spare] * pages] * rest),
        ]
        if step.previous is not None:
            before = [[-1 if chunk.previous is None else chunk.previous] for chunk in chunks]
            values.append((step.previous, before + [[-1]] * rest))
        for tensor, value in values:
            tensor.copy_(torch.tensor(value, dtype=tensor.dtype), non_blocking=True)

    def run(self) -> Tensor:
        """Float32 logits (size, V)."""
        return self.model(self.tokens, cache=self.step).float()


class DecodeGraphs:
    """A graph for each power of two of sequences, captured when it is first needed."""

    def __init__(self, model: nn.Module, cache: PagedCache, spare_page: int):
        self._model, self._cache, self._spare_page = model, cache, spare_page
        self._captured: dict[int, tuple[StaticStep, torch.cuda.CUDAGraph, Tensor]] = {}

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Float32 logits (len(chunks), V), of chunks of one token each."""
        size = 1 << (len(chunks) - 1).bit_length()
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        static, graph, logits = self._captured[size]
        static.fill(chunks)
        graph.replay()
        return logits[: len(chunks)].clone()

    def _capture(self, size: int) -> tuple[StaticStep, torch.cuda.CUDAGraph, Tensor]:
        static = StaticStep(self._model, self._cache, size, self._spare_page)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels, and lets libraries allocate, before the capture
            for _ in range(2):
                static.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = static.run()
        return static, graph, logits
