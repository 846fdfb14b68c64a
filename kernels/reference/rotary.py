"""Rotary position embedding."""

import torch
from torch import Tensor

from .dtypes import widen


def angles(positions: Tensor, rotary_dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """``position · base^(−2i / rotary_dim)``: (..., rotary_dim / 2)."""
    exponent = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=dtype) / rotary_dim
    return positions.to(dtype).unsqueeze(-1) * base**-exponent


def tables(
    q: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
) -> tuple[Tensor, Tensor]:
    """The cosine and sine of each token of ``q`` (B, S, H, D): (1 or B, S, 1, rotary_dim / 2)."""
    length = q.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if cos is None:
        if positions is None:
            positions = torch.arange(length, device=q.device)
        angle = angles(positions, rotary_dim, base, dtype)
        cos, sin = angle.cos(), angle.sin()
    else:
        cos, sin = cos.detach().to(dtype), sin.detach().to(dtype)
        cos, sin = (cos[:length], sin[:length]) if positions is None else (cos[positions], sin[positions])
    return tuple(t.reshape(-1, length, 1, rotary_dim // 2) for t in (cos, sin))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotates the first 2·cos.shape[-1] columns of ``x`` (B, S, H, D), pair by pair; the others pass."""
    half = cos.shape[-1]
    rotated, passed = widen(x[..., : 2 * half]), x[..., 2 * half :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :half], rotated[..., half:]
    pair = (first * cos - second * sin, second * cos + first * sin)
    rotated = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    rotated = rotated.to(x.dtype)
    return torch.cat((rotated, passed), dim=-1) if passed.shape[-1] else rotated


def rope(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor | None]:
    cos, sin = tables(q, positions, cos, sin, base, rotary_dim)
    return rotate(q, cos, sin, interleaved), None if k is None else rotate(k, cos, sin, interleaved)
