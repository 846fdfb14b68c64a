"""Attention written plainly, to read: one head, many heads, and causal self-attention as a layer.

Nothing here is fast and nothing in llmfast uses it; tests hold it equal to the decoder's own path through the kernels.
Shape letters: B batch, S length, H heads, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def single_head_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v (Vaswani et al. 2017, eq. 1): every query takes a weighted mean of the values.

    Args:
        q: (..., S, D), what each of S tokens looks for.
        k: (..., T, D), what each of T tokens offers to be found by.
        v: (..., T, D), what each of T tokens hands over.
        visible: (S, T) boolean, whether query s may look at key t; all may if left out.

    Returns:
        (..., S, D).

    >>> one = torch.ones(2, 4)
    >>> single_head_attention(one, one, torch.arange(8.0).view(2, 4))[0]  # equal keys: the plain mean of the values
    tensor([2., 3., 4., 5.])
    """
    # Similarity of every query with every key. A dot product of D terms of variance 1 has variance D; dividing by √D
    # keeps the softmax away from where it has no gradient.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., S, T)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)  # exp(−∞) = 0: no weight at all
    weights = scores.softmax(dim=-1)  # (..., S, T), each row sums to 1
    return weights @ v  # (..., S, D)


def causal_mask(S: int) -> Tensor:
    """(S, S) boolean: token s sees itself and the tokens before it. Training predicts all S next tokens at once, and
    no token may see the answer.

    >>> causal_mask(3).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return torch.ones(S, S, dtype=torch.bool).tril()


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, visible: Tensor | None = None) -> Tensor:
    """H attentions side by side, each on its own slice of the columns (Vaswani et al. 2017, section 3.2.2).

    Args:
        q: (B, S, H·D).
        k, v: (B, T, K·D). With fewer key/value heads than query heads (K < H), each serves H/K query heads
            (grouped-query attention, Ainslie et al. 2023).
        heads: H.
        visible: (S, T) boolean, as for ``single_head_attention``.

    Returns:
        (B, S, H·D), the heads' results side by side.
    """
    B, S, width = q.shape
    D = width // heads
    q = q.view(B, S, heads, D).transpose(1, 2)  # (B, S, H·D) -> (B, S, H, D) -> (B, H, S, D)
    k, v = (each.view(B, each.shape[1], -1, D).transpose(1, 2) for each in (k, v))  # (B, K, T, D)
    k, v = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (k, v))  # (B, H, T, D)
    out = single_head_attention(q, k, v, visible)  # B and H are just more of the leading dimensions
    return out.transpose(1, 2).reshape(B, S, width)  # (B, H, S, D) -> (B, S, H, D) -> (B, S, H·D)


class CausalSelfAttention(nn.Module):
    """Queries, keys and values from one sequence, attention to the past, and a last mixing of the heads.

    >>> layer = CausalSelfAttention(width=32, heads=4)
    >>> layer(torch.randn(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, bias: bool = False):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        kv_width = (kv_heads or heads) * self.head_width
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, kv_width, bias=bias)
        self.value = nn.Linear(width, kv_width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, rope_base: float | None = None) -> Tensor:
        """x (B, S, E) -> (B, S, E); with ``rope_base``, queries and keys are turned by their positions first."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if rope_base is not None:
            q, k = (rotate(each, self.head_width, rope_base) for each in (q, k))
        mask = causal_mask(x.shape[1]).to(x.device)
        return self.out(multi_head_attention(q, k, v, self.heads, mask))


def rotate(x: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of x (B, S, heads·D), by complex numbers.

    Columns i and i + D/2 of a head are the real and imaginary part of one number, which turns by position ·
    base^(−2i/D). The product of a turned query and a turned key depends on the distance of their positions only.
    """
    B, S, width = x.shape
    heads = x.view(B, S, width // head_width, 2, head_width // 2)  # (B, S, heads, real | imaginary, D/2)
    number = torch.complex(heads[..., 0, :], heads[..., 1, :])  # (B, S, heads, D/2)
    # (D/2,)
    frequency = base ** -(torch.arange(0, head_width, 2, device=x.device, dtype=x.dtype) / head_width)
    angle = torch.outer(torch.arange(S, device=x.device, dtype=x.dtype), frequency)  # (S, D/2)
    # (S, 1, D/2) broadcasts over B and heads.
    turned = number * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.stack([turned.real, turned.imag], dim=-2).reshape(B, S, width)
