"""A decoder in plain PyTorch in the style of nanoGPT, with which whole jobs are compared.

It is GPT-2 (learned positions, LayerNorm, GELU, biases) or a modern decoder (RMSNorm, RoPE, SwiGLU, grouped-query
attention), with SDPA for attention and with the scaled embeddings and smear of quickstart. Parameters have the names
and layouts of ``llmfast.models.decoder``, so that both can hold the same weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.models.config import DecoderConfig

Rotary = tuple[Tensor, Tensor] | None


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        bias = config.biases == "all"
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=bias)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=bias)

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache | None) -> Tensor:
        B, S, _ = x.shape
        heads = self.qkv(x).view(B, S, -1, self.head_width).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if rotary is not None:
            q, k = rotated(q, *rotary), rotated(k, *rotary)
        if cache is not None:
            k, v = cache.append(k, v)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=S > 1, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).reshape(B, S, -1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class GatedFeedForward(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.ff_width)
        self.down = nn.Linear(config.ff_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def norm(config: DecoderConfig) -> nn.Module:
    return (nn.LayerNorm if config.norm == "layer" else nn.RMSNorm)(config.width, config.norm_eps)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = norm(config)
        self.feed_forward = (GatedFeedForward if config.gated else FeedForward)(config)

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Smear(nn.Module):
    """Adds to each embedding a learned share of the previous one."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.width))

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        if cache is not None:
            if cache.last_embedding is not None:
                before[:, 0] = cache.last_embedding
            cache.last_embedding = x[:, -1]
        return x + self.weight * before


class PlainDecoder(nn.Module):
    """``forward(tokens, targets)`` is the mean loss, ``forward(tokens, caches=...)`` continues a sequence."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.smear = Smear(config) if config.smear else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        exponents = torch.arange(0, config.head_width, 2).double() / config.head_width
        self.angles = torch.outer(torch.arange(config.context).double(), config.rope_base**-exponents)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, *, caches: list[Cache] | None = None) -> Tensor:
        start = caches[0].length if caches else 0
        here = slice(start, start + tokens.shape[1])
        x, rotary = self.embedding(tokens), None
        if self.config.scale_embedding:
            x = x * self.config.width**0.5
        if self.smear is not None:
            x = self.smear(x, caches[0] if caches else None)
        if self.positions is not None:
            x = x + self.positions.weight[here]
        else:
            wide = x.dtype if x.dtype == torch.float64 else torch.float32
            angles = self.angles[here].to(x.device)
            rotary = angles.cos().to(wide), angles.sin().to(wide)
        for index, block in enumerate(self.blocks):
            x = block(x, rotary, caches[index] if caches else None)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class Cache:
    """Keys and values (B, K, context, D) of one block, filled from the left."""

    def __init__(self, config: DecoderConfig, batch: int, like: Tensor):
        shape = (batch, config.kv_heads, config.context, config.head_width)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0
        self.last_embedding: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
