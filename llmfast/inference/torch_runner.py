"""Runs a ``Decoder`` in PyTorch, on a GPU or a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from llmfast.inference.runner import Chunk
from llmfast.models.adapters.switch import adapters_by_row, only_switch, switches, use_adapter
from llmfast.models.cache import CachedStep, Group, PagedCache

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "int8")}
CPU_MEMORY = 2**30


class TorchRunner:
    """A runner (see ``llmfast.inference.runner``) of a decoder, whose mode and weights stay as they are.

    Args:
        model: a ``Decoder``, perhaps wrapped by ``torch.compile``, FSDP2 or tensor parallelism.
        cuda_graphs: replay the steps that only generate, on a GPU.
    """

    def __init__(self, model: nn.Module, *, cuda_graphs: bool = True):
        self.model = model
        self.config = model.config
        self.vocab_size, self.context = self.config.vocab_size, self.config.context
        self.shares_prefixes = self.config.rope_scaling.kind != "dynamic"
        self.window = self.config.widest_window
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._kv_heads = model.blocks[0].attention.kv_heads
        self._switch = only_switch(model) if switches(model) else None
        self.default_adapter = None if self._switch is None else self._switch.active
        # Experts and dynamic scaling wait for numbers from the GPU.
        fits = not self.config.experts.count and self.shares_prefixes
        self._uses_graphs = cuda_graphs and self.device.type == "cuda" and fits
        self._graphs = None
        self.cache: PagedCache | None = None

    def check_adapter(self, name: str | None) -> None:
        if self._switch is None and name is not None:
            raise ValueError(f"adapter: the model has no adapters, but the request names {name!r}")
        if self._switch is not None and not (self._switch.merged is not None and name == self.default_adapter):
            self._switch.check(name)

    # --- the cache ----------------------------------------------------------------------------------------------------

    def default_blocks(self, block_size: int, cache_dtype: str, sequences: int, memory: int | None) -> int:
        config = self.config
        size = self._cache_dtype(cache_dtype)
        per_head = config.head_width * size.itemsize + (4 if size == torch.int8 else 0)
        per_block = 2 * config.layers * self._kv_heads * per_head * block_size
        of_a_sequence = -(-config.context // block_size)
        if memory is not None:
            return max(1, memory // per_block)
        memory = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else CPU_MEMORY
        return max(of_a_sequence, min(sequences * of_a_sequence, memory // per_block))

    def _cache_dtype(self, name: str) -> torch.dtype:
        return self.dtype if name == "auto" else DTYPES[name]

    def allocate(self, blocks: int, block_size: int, cache_dtype: str) -> None:
        # One page more, for the rows that fill up a CUDA graph.
        dtype = self._cache_dtype(cache_dtype)
        self.cache = PagedCache(self.config, blocks + 1, block_size, dtype, self.device, self._kv_heads)
        if self._uses_graphs and dtype == self.dtype:
            from llmfast.inference.graphs import DecodeGraphs

            self._graphs = DecodeGraphs(self.model, self.cache, spare_page=blocks)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.cache.copy(list(pairs))

    # --- a forward pass -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        with self._evaluating(), self._adapters(chunks) as are_plain:
            one_each = all(len(chunk.tokens) == 1 and chunk.outputs == 1 for chunk in chunks)
            if self._graphs is not None and one_each and are_plain:
                return self._graphs.forward(chunks)
            order = order_of(chunks)
            step, tokens = cached_step(self.cache, [chunks[i] for i in order], self.config)
            logits = self.model(tokens, cache=step).float()
        if order == list(range(len(chunks))):
            return logits
        parts = logits.split([chunks[i].outputs for i in order])
        return torch.cat([part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])])

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout for a while."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            yield
        finally:
            if training:
                self.model.train()

    @contextlib.contextmanager
    def _adapters(self, chunks: Sequence[Chunk]) -> Iterator[bool]:
        """With the adapters of the chunks; yields whether that is the model as it is."""
        names = {chunk.adapter for chunk in chunks}
        if self._switch is None or names == {self._switch.active}:
            yield True
        elif len(names) == 1:
            with use_adapter(self.model, *names):
                yield False
        else:
            ordered = [chunks[i] for i in order_of(chunks)]
            with adapters_by_row(self.model, [chunk.adapter for chunk in ordered for _ in chunk.tokens]):
                yield False


def order_of(chunks: Sequence[Chunk]) -> list[int]:
    """Those that read equally many tokens together, so that attention takes them at once."""
    return sorted(range(len(chunks)), key=lambda i: (len(chunks[i].tokens), chunks[i].past > 0))


def cached_step(cache: PagedCache, chunks: Sequence[Chunk], config) -> tuple[CachedStep, Tensor]:
    """The step that reads ``chunks``, of which those that read equally many tokens follow each other, and its tokens
    (N, 1)."""
    device, size = cache.layers[0].keys.device, cache.page_size
    groups, tokens, positions, places, outputs = [], [], [], [], []
    for same in _alike(chunks):
        first = len(tokens)
        for chunk in same:
            new = range(chunk.past, chunk.past + len(chunk.tokens))
            outputs += range(len(tokens) + len(new) - chunk.outputs, len(tokens) + len(new))
            tokens += chunk.tokens
            positions += new
            places += [chunk.blocks[place // size] * size + place % size for place in new]
        groups.append(_group(same, slice(first, len(tokens)), size, device))
    column = torch.tensor([tokens, positions], dtype=torch.int64, device=device).unsqueeze(-1)
    step = CachedStep(
        cache=cache,
        groups=groups,
        positions=column[1],
        places=torch.tensor(places, dtype=torch.int64, device=device),
        previous=_previous(chunks, device) if config.smear else None,
        reach=_reach(chunks, config, device) if config.rope_scaling.kind == "dynamic" else None,
        outputs=torch.tensor(outputs, dtype=torch.int64, device=device),
        longest=max(group.longest for group in groups),
    )
    return step, column[0]


def _alike(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    same: list[Chunk] = []
    for chunk in chunks:
        if same and (len(chunk.tokens), chunk.past > 0) != (len(same[0].tokens), same[0].past > 0):
            yield same
            same = []
        same.append(chunk)
    yield same


def _group(chunks: list[Chunk], rows: slice, size: int, device: torch.device) -> Group:
    lengths = [chunk.past + len(chunk.tokens) for chunk in chunks]
    pages = -(-max(lengths) // size)
    tables = [list(chunk.blocks[:pages]) for chunk in chunks]
    one = tables[0][: -(-lengths[0] // size)]
    follow = len(chunks) == 1 and one == list(range(one[0], one[0] + len(one)))
    return Group(
        rows=rows,
        queries=len(chunks[0].tokens),
        page_table=torch.tensor([[*table, *[0] * (pages - len(table))] for table in tables], dtype=torch.int32).to(
            device
        ),
        lengths=torch.tensor(lengths, dtype=torch.int32).to(device),
        longest=max(lengths),
        shortest=min(lengths),
        page_size=size,
        first_place=one[0] * size if follow else None,
    )


def _previous(chunks: Sequence[Chunk], device: torch.device) -> Tensor:
    before = []
    for chunk in chunks:
        before += [-1 if chunk.previous is None else chunk.previous, *chunk.tokens[:-1]]
    return torch.tensor(before, dtype=torch.int64, device=device).unsqueeze(-1)


def _reach(chunks: Sequence[Chunk], config, device: torch.device) -> Tensor:
    """A prompt is read with the frequencies of its length, and what follows with those of the length so far, as
    transformers does."""
    reach = [
        max(chunk.prompt, chunk.past + place + 1, config.original_context)
        for chunk in chunks
        for place in range(len(chunk.tokens))
    ]
    return torch.tensor(reach, dtype=torch.int64, device=device)
