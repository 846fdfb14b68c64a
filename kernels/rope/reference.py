"""Rotary position embedding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import cast, widen


def angles(positions: Tensor, rotary_dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """``position · base^(−2i / rotary_dim)``: (..., rotary_dim / 2)."""
    exponent = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=dtype) / rotary_dim
    return positions.to(dtype).unsqueeze(-1) * base**-exponent


def by_section(x: Tensor, sections: Sequence[int]) -> Tensor:
    """(axes, ..., pairs) -> (..., pairs): each section of the pairs as it is of its axis."""
    parts = x.split(list(sections), dim=-1)
    return torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)


def tables(
    q: Tensor,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
    sections: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The cosine and sine of each token of ``q`` (B, S, H, D): (S or B, S, 1, rotary_dim / 2)."""
    length = q.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if cos is None:
        if positions is None:
            positions = torch.arange(length, device=q.device)
        # In float32 the angle of position 131,072 is wrong by 0.004; Apple's GPUs have nothing wider.
        angle = angles(positions, rotary_dim, base, dtype if positions.device.type == "mps" else torch.float64)
        cos, sin = cast(angle.cos(), dtype), cast(angle.sin(), dtype)
    else:
        cos, sin = cast(cos.detach(), dtype), cast(sin.detach(), dtype)
        if positions is not None:  # Not by an index, which takes negative positions from the end.
            cos, sin = F.embedding(positions, cos), F.embedding(positions, sin)
        elif len(cos) > length:
            cos, sin = cos[:length], sin[:length]
    if sections:
        cos, sin = by_section(cos, sections), by_section(sin, sections)
    return cos.unsqueeze(-2), sin.unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotates the first 2·cos.shape[-1] columns of ``x`` (B, S, H, D), pair by pair; the others pass."""
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin, interleaved), x[..., width:]), dim=-1)
    wide = widen(x)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    rotated = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return cast(rotated, x.dtype)


def rope(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
    sections: Sequence[int],
    interleaved: bool,
) -> tuple[Tensor, Tensor | None]:
    cos, sin = tables(q, positions, cos, sin, base, rotary_dim, sections)
    return rotate(q, cos, sin, interleaved), None if k is None else rotate(k, cos, sin, interleaved)
