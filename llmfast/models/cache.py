"""Keys and values of the tokens already read, in pages that any sequence may hold.

Beside the shape letters of ``decoder.py``: P pages, N tokens of one forward pass, of all sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.kernels import flash_attention, flash_decode, is_batch_invariant
from llmfast.kernels.frame.backend import use_triton
from llmfast.models.config import DecoderConfig


class Scores(NamedTuple):
    """What a layer makes of the products of queries and keys, as ``flash_attention`` takes it."""

    window: tuple[int, int] | None
    scale: float | None
    softcap: float | None
    sinks: Tensor | None


class LayerPages:
    """The keys and values of one block of a decoder: (P, page size, K, D) each.

    In int8 each head of each token has a scale of its own, its largest absolute value / 127.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        # Not zeros: the operating system gives memory when it is first written.
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        scales = (*shape[:3], 1)
        self.scales = (
            [torch.empty(scales, dtype=torch.float32, device=device) for _ in range(2)] if dtype == torch.int8 else None
        )

    def write(self, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store ``k`` and ``v`` (N, K, D) at ``places`` (N,): page · page size + row."""
        for which, (held, new) in enumerate(((self.keys, k), (self.values, v))):
            if self.scales is not None:
                scale = new.float().abs().amax(-1, keepdim=True) / 127
                self.scales[which].flatten(0, 1).index_copy_(0, places, scale)
                new = (new / scale.clamp(min=1e-30)).round()
            held.flatten(0, 1).index_copy_(0, places, new.to(held.dtype))

    def read(self, places: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values at ``places`` (B, T), or at a range of them as a batch of one: (B, T, K, D) each."""
        keys, values = (self._read(which, places, dtype) for which in range(2))
        return keys, values

    def _read(self, which: int, places: Tensor | slice, dtype: torch.dtype) -> Tensor:
        def chosen(held: Tensor) -> Tensor:
            flat = held.flatten(0, 1)
            if isinstance(places, slice):
                return flat[places][None]
            # Four times as fast as flat[places] on a CPU.
            return flat.index_select(0, places.flatten()).unflatten(0, places.shape)

        found = chosen((self.keys, self.values)[which]).to(dtype)
        return found if self.scales is None else found * chosen(self.scales[which]).to(dtype)

    def copy(self, source: list[int], target: list[int]) -> None:
        """Copy whole pages."""
        for held in (self.keys, self.values, *(self.scales or ())):
            held[target] = held[source]


class PagedCache:
    """The pages of all blocks of a decoder.

    Args:
        config: of the decoder.
        pages, page_size: how many pages of how many tokens.
        dtype: of the numbers that are held; int8 rounds them (see ``LayerPages``).
        device: where they are.
        kv_heads: K of the decoder at hand, where that is a part of one.
    """

    def __init__(
        self,
        config: DecoderConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ):
        self.page_size = page_size
        shape = (pages, page_size, kv_heads or config.kv_heads, config.head_width)
        self.layers = [LayerPages(shape, dtype, device) for _ in range(config.layers)]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy pages, (source, target) each."""
        source, target = map(list, zip(*pairs, strict=True))
        for layer in self.layers:
            layer.copy(source, target)


@dataclass
class Group:
    """Sequences that read equally many new tokens in a forward pass."""

    rows: slice
    """Their tokens among the N, sequence after sequence."""
    queries: int
    """S: new tokens of each."""
    page_table: Tensor
    """(B, pages of a sequence) int32: which pages hold a sequence, in order."""
    lengths: Tensor
    """(B,) int32: tokens of each sequence, the new ones included."""
    longest: int
    shortest: int
    page_size: int
    first_place: int | None = None
    """Where the only sequence begins in the cache if its pages follow each other, so that they need no copy."""
    _seen: dict[int | None, tuple[Tensor | slice, Tensor | None]] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Whether no sequence had tokens before."""
        return self.longest == self.queries

    def all_places(self) -> Tensor:
        """(B, T): where the tokens of each sequence are; behind its end, any of them."""
        rows = torch.arange(self.longest, device=self.lengths.device)
        rows = torch.minimum(rows, self.lengths[:, None].long() - 1)
        return self.page_table.long().gather(1, rows // self.page_size) * self.page_size + rows % self.page_size

    def seen(self, window: int | None) -> tuple[Tensor | slice, Tensor | None]:
        """The places (B, T) of keys that some new token sees, and which (B, 1, S, T) each sees; None for all."""
        if window not in self._seen:
            self._seen[window] = self._find_seen(window)
        return self._seen[window]

    def _find_seen(self, window: int | None) -> tuple[Tensor | slice, Tensor | None]:
        S = self.queries
        kept = self.longest if window is None else min(self.longest, window + S - 1)
        even = self.shortest == self.longest
        if self.first_place is not None:
            places: Tensor | slice = slice(self.first_place + self.longest - kept, self.first_place + self.longest)
        if S == 1 and even and self.first_place is not None:
            return places, None
        ends = self.lengths[:, None].long()
        columns = (ends - kept).clamp(min=0) + torch.arange(kept, device=ends.device)
        own = torch.minimum(columns, ends - 1)
        if self.first_place is None:
            places = self.page_table.long().gather(1, own // self.page_size) * self.page_size + own % self.page_size
        if S == 1 and even:
            return places, None
        queries = ends - S + torch.arange(S, device=ends.device)
        mask = columns[:, None] <= queries[..., None]
        if window is not None:
            mask &= columns[:, None] > queries[..., None] - window
        return places, mask[:, None]


@dataclass
class CachedStep:
    """The new tokens of one forward pass, (N, 1), where each stands in its sequence and in the cache.

    ``Decoder.forward(tokens, cache=step)`` reads them, stores their keys and values, and gives the logits of
    ``outputs``.
    """

    cache: PagedCache
    groups: list[Group]
    positions: Tensor
    """(N, 1) int64: place in its sequence."""
    places: Tensor
    """(N,) int64: where keys and values go, page · page size + row."""
    previous: Tensor | None
    """(N, 1) int64: the token before, −1 where there is none; only for models that smear."""
    reach: Tensor | None
    """(N,) int64: the length that dynamic RoPE scaling stretches to for each token; only for models that have it."""
    outputs: Tensor
    """Which of the N tokens logits are wanted of."""
    longest: int
    """Tokens of the longest sequence."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores, chunk: int | None = None) -> Tensor:
        """Store k and v (N, K, D) of a layer, and attend with q (N, H, D) to the sequence of each, or to the tokens of
        its chunk; (N, H, D)."""
        pages = self.cache.layers[layer]
        pages.write(self.places, k, v)
        parts = [
            _attend(group, pages, *(_by_sequence(each[group.rows], group.queries) for each in (q, k, v)), scores, chunk)
            for group in self.groups
        ]
        flat = [part.transpose(1, 2).flatten(0, 1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat)


def _by_sequence(x: Tensor, queries: int) -> Tensor:
    """(B·S, H, D) -> (B, H, S, D)."""
    return x.unflatten(0, (-1, queries)).transpose(1, 2)


def _attend(
    group: Group, pages: LayerPages, q: Tensor, k: Tensor, v: Tensor, scores: Scores, chunk: int | None
) -> Tensor:
    is_exact = pages.keys.dtype == q.dtype
    if chunk is not None and group.longest <= chunk:
        chunk = None  # which is all there is
    if group.is_fresh and is_exact and chunk is None:
        return flash_attention(q, k, v, causal=True, **scores._asdict())
    triton, invariant = use_triton(q), is_batch_invariant()
    if (triton and invariant) or (chunk is not None and group.queries > 1):
        return _attend_one_by_one(group, pages, q, scores, chunk)
    options = scores._asdict()
    if chunk is not None:  # what lies before the chunk of the only query is not seen, as padding is not
        options["leftpad"] = (group.lengths - 1) // chunk * chunk
    if triton and is_exact:
        held = (each.transpose(1, 2) for each in (pages.keys, pages.values))
        return flash_decode(q, *held, group.lengths, page_table=group.page_table, **options)
    if triton or invariant or not (scores.softcap is None and scores.sinks is None and chunk is None):
        held = (each.transpose(1, 2) for each in pages.read(group.all_places(), q.dtype))
        return flash_decode(q, *held, group.lengths, **options)
    places, mask = group.seen(None if scores.window is None else scores.window[0] + 1)
    k, v = (each.transpose(1, 2) for each in pages.read(places, q.dtype))
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale, enable_gqa=is_grouped)


def _attend_one_by_one(group: Group, pages: LayerPages, q: Tensor, scores: Scores, chunk: int | None = None) -> Tensor:
    """By the kernel of training, whose bits those of ``flash_decode`` are not; chunk after chunk."""
    keys, values = pages.read(group.all_places(), q.dtype)
    rows = []
    for row, length in enumerate(group.lengths.tolist()):
        past, size, parts = length - group.queries, chunk or length, []
        for start in range(past // size * size, length, size):
            end = min(start + size, length)
            k, v = (each[row : row + 1, start:end].transpose(1, 2) for each in (keys, values))
            queries = q[row : row + 1, :, max(start - past, 0) : end - past]
            parts.append(flash_attention(queries, k, v, causal=True, **scores._asdict()))
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)
