"""Attention of a model, and where the tokens of a batch stand for it. Shape letters are those of ``decoder.py``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.kernels import flash_attention, rope
from llmfast.models.cache import CachedStep, Scores
from llmfast.models.config import DecoderConfig
from llmfast.models.norms import l2_norm, norm


class Places(NamedTuple):
    """Where the tokens of a batch stand, for attention."""

    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines (positions, D/2) by position; None for learned positions."""
    positions: Tensor | None = None
    """Position of each token (B, S) in its document; None where row s of ``rotary`` is for column s."""
    cu_seqlens: Tensor | None = None
    """Where each document starts in the batch laid end to end; None where each row is one."""
    window_rotary: tuple[Tensor, Tensor] | None = None
    """As ``rotary``, for layers with a sliding window; None where they have no base of their own."""
    chunk_seqlens: Tensor | None = None
    """As ``cu_seqlens``, for layers that attend by chunks: where each chunk starts."""


class Attention(nn.Module):
    """Causal grouped-query self-attention."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        # One product gives queries, keys and values: a wider product runs closer to the hardware's peak than three.
        outputs = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(config.width, outputs, bias=config.biases != "none")
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=config.biases == "all")
        # The parts of fused layers, which adapters may be of.
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        self.fused = {"qkv": {"q": query, "k": key, "v": key}}
        self.norms_heads = config.qk_norm_over != "all"
        D = self.head_width
        of_queries, of_keys = {"head": (D, D), "own_head": ((self.heads, D), (self.kv_heads, D)), "all": (query, key)}[
            config.qk_norm_over
        ]
        self.q_norm = norm(config, of_queries) if config.qk_norm else None
        self.k_norm = norm(config, of_keys) if config.qk_norm else None
        self.rotation, self.rope_interleaved = config.rotation_of(layer), config.rope_interleaved
        self.l2_norm_eps = config.norm_eps if config.qk_l2_norm and self.rotation != "none" else None
        self.temperature = config.query_temperature if self.rotation == "none" else None
        self.temperature_tokens = config.query_temperature_tokens
        self.chunk = config.chunk_of(layer)
        window = config.window_of(layer)
        self.window = None if window is None else (window - 1, 0)
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.sinks = nn.Parameter(torch.empty(self.heads)) if config.attention_sinks else None
        self.dropout = config.dropout

    @property
    def scores(self) -> Scores:
        return Scores(self.window, self.scale, self.softcap, self.sinks)

    def queries_keys_values(self, x: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """What attention computes with, of x (B, S, E): queries (B, S, H, D), keys and values (B, S, K, D), normed and
        rotated where the model does that."""
        B, S, _ = x.shape
        qkv = self.qkv(x).view(B, S, self.heads + 2 * self.kv_heads, self.head_width)
        q, k, v = qkv.split_with_sizes([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None:
            if self.norms_heads:
                q, k = self.q_norm(q), self.k_norm(k)
            else:
                q, k = (
                    each_norm(each.flatten(2)).view(each.shape)
                    for each_norm, each in ((self.q_norm, q), (self.k_norm, k))
                )
        rotary = {"none": None, "all": places.rotary, "window": places.window_rotary}[self.rotation]
        if rotary is not None:
            cos, sin = rotary
            q, k = rope(q, k, positions=places.positions, cos=cos, sin=sin, interleaved=self.rope_interleaved)
        if self.l2_norm_eps is not None:
            q, k = (l2_norm(each, self.l2_norm_eps) for each in (q, k))
        if self.temperature is not None:
            q = q * self._temperatures(places.positions, S, q)
        return q, k, v

    def _temperatures(self, positions: Tensor | None, S: int, like: Tensor) -> Tensor:
        """The factors on queries, (B or 1, S, 1, 1) in their dtype."""
        if positions is None:
            positions = torch.arange(S, device=like.device)[None]
        steps = ((positions.to(torch.promote_types(like.dtype, torch.float32)) + 1) / self.temperature_tokens).floor()
        return (steps.log1p() * self.temperature + 1).to(like.dtype)[..., None, None]

    def forward(self, x: Tensor, places: Places, cache: CachedStep | None = None) -> Tensor:
        B, S, _ = x.shape
        q, k, v = self.queries_keys_values(x, places)
        if cache is not None:
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))
            mixed = cache.attend(self.layer, q, k, v, self.scores, self.chunk)
            return self.out(mixed.reshape(B, S, -1))
        options = self.scores._asdict() | {"causal": True, "dropout_p": self.dropout if self.training else 0.0}
        cu_seqlens = places.cu_seqlens if self.chunk is None else places.chunk_seqlens
        if cu_seqlens is None:
            # (B, S, H, D) -> (B, H, S, D) is a view: attention reads any strides.
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            mixed = flash_attention(q, k, v, **options).transpose(1, 2)
        else:
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))
            mixed = flash_attention(q, k, v, cu_seqlens_q=cu_seqlens, **options)
        return self.out(mixed.reshape(B, S, -1))


def document_positions(cu_seqlens: Tensor, shape: torch.Size) -> Tensor:
    """Each token's place in its document, (B, S), for documents laid end to end over the rows of a batch."""
    tokens = torch.arange(shape.numel(), device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    return (tokens - cu_seqlens[document]).view(shape)


def with_chunks(cu_seqlens: Tensor, positions: Tensor, chunk: int) -> Tensor:
    """Where each chunk of ``chunk`` tokens of each document starts, as ``cu_seqlens`` says it of documents.

    The result has as many entries as there can be starts, so that its shape does not depend on where documents end;
    those at the end repeat.
    """
    N = positions.numel()
    tokens = torch.arange(N, device=positions.device, dtype=cu_seqlens.dtype)
    starts = torch.where(positions.flatten() % chunk == 0, tokens, N).sort().values
    most = len(cu_seqlens) + N // chunk
    return torch.nn.functional.pad(starts, (0, 1), value=N)[:most]
