"""The decoder, read top to bottom: embedding, blocks of attention and feed-forward, final norm, head.

Shape letters: B batch, S query length, T key length, H query heads, K key/value heads, D head width, E model
width, F feed-forward width, V vocabulary, N tokens (B·S flattened).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmfast.kernels import flash_attention, linear_cross_entropy, rms_norm, rope, swiglu
from llmfast.models.cache import KVCache, LayerCache
from llmfast.models.config import DecoderConfig


class Documents(NamedTuple):
    """Where documents begin in a batch: attention stays inside them and positions count from their starts."""

    cu_seqlens: Tensor  # (documents + 1,) int32, in the B·S tokens
    positions: Tensor  # (B, S)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        # One product gives queries, keys and values: a wider product runs closer to the hardware's peak than three.
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=False)
        self.q_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        B, S, _ = x.shape
        qkv = self.qkv(x).view(B, S, self.heads + 2 * self.kv_heads, self.head_width)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        cos, sin = rotary
        positions = None if documents is None else documents.positions
        q, k = rope(self.q_norm(q), self.k_norm(k), cos=cos, sin=sin, positions=positions)
        if cache is not None:
            k, v = cache.append(k, v)
        if documents is not None:
            packed = (each.flatten(0, 1) for each in (q, k, v))  # (B·S, H, D)
            mixed = flash_attention(*packed, causal=True, cu_seqlens_q=documents.cu_seqlens)
            return self.out(mixed.reshape(B, S, -1))
        # (B, S, H, D) -> (B, H, S, D) is a view: attention reads any strides.
        mixed = flash_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class FeedForward(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020): down(silu(gate(x)) · up(x)), gate and up in one product."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache, documents)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """A decoder-only language model.

    ``forward(tokens)`` gives logits (B, S, V); ``forward(tokens, targets)`` gives the mean loss in nats per target
    without ever holding the logits; ``forward(tokens, cache=cache)`` continues a sequence.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self, generator)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, S, V) of ``tokens`` (B, S), or the mean loss over ``targets`` (B, S; −100 is ignored).

        With ``cu_seqlens`` (documents + 1,) documents lie side by side in the B·S tokens: none sees another, and
        positions count from their starts.

        Raises:
            ValueError: the sequence, with what the cache already holds, is longer than the model's context.
        """
        past, S = (cache.length if cache is not None else 0), tokens.shape[1]
        if past + S > self.config.context:
            raise ValueError(f"sequence of {past + S} tokens; the model's context is {self.config.context}")
        x = self.embedding(tokens)
        if self.config.scale_embedding:
            x = x * self.config.width**0.5
        documents = None
        if cu_seqlens is not None:
            place = torch.arange(tokens.numel(), device=tokens.device, dtype=cu_seqlens.dtype)
            start = cu_seqlens[torch.searchsorted(cu_seqlens, place, right=True) - 1]
            documents = Documents(cu_seqlens, (place - start).view(tokens.shape))
        rotary = self.cos[past : past + S], self.sin[past : past + S]
        for index, block in enumerate(self.blocks):
            x = block(x, rotary, cache.layers[index] if cache is not None else None, documents)
        x = self.norm(x)
        if cache is not None:
            cache.length += S
        if targets is None:
            return self.head(x)
        return linear_cross_entropy(x, self.head.weight, targets)


def rotary_table(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, D/2) of the rotary angles position · base^(−2i/D) (Su et al. 2021, eq. 15).

    Angles are formed in float64: in float32 a late position's angle is off by its last digits.
    """
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
    angles = torch.outer(
        torch.arange(config.context, dtype=torch.float64),
        config.rope_base**-exponent,
    )
    return angles.cos().float(), angles.sin().float()


@torch.no_grad()
def initialise(model: Decoder, generator: torch.Generator | None = None) -> None:
    """Fill the weights, in order, from ``generator``.

    Matrices have variance 1/fan_in; those that write to the residual stream are divided by sqrt(2·layers) so that
    its variance does not grow with depth (GPT-2, section 2.3). The embedding table follows
    ``config.embedding_init``.
    """
    config = model.config

    def normal(weight: Tensor, std: float) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)

    table_std = 0.02 if config.embedding_init == "normal" else (2 / (config.vocab_size + config.width)) ** 0.5
    normal(model.embedding.weight, table_std)
    if not config.tie_embeddings:
        normal(model.head.weight, config.width**-0.5)
    residual_scale = (2 * config.layers) ** -0.5
    for block in model.blocks:
        normal(block.attention.qkv.weight, config.width**-0.5)
        normal(block.attention.out.weight, (config.heads * config.head_width) ** -0.5 * residual_scale)
        normal(block.feed_forward.gate_up.weight, config.width**-0.5)
        normal(block.feed_forward.down.weight, config.ff_width**-0.5 * residual_scale)
