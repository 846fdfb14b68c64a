"""Rotary position embedding of queries and keys, in one launch.

Pair i of a head's columns is turned by the angle ``a = position · base^(−2i/rotary_dim)``:

    first'  = first · cos a − second · sin a
    second' = second · cos a + first · sin a

The pairs are columns i and i + rotary_dim/2 (half-split, as in Llama and Qwen), or 2i and 2i + 1 (interleaved, as
in the paper and GPT-J). Columns from rotary_dim on pass. The gradient is the turn back, so that nothing but the
positions is kept.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import as_integer, check_floating, check_number, check_parameter, check_same_device
from ..frame.dtypes import cast
from . import reference
from .ops import rope_op


def rope(
    q: Tensor,
    k: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    sections: Sequence[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2.2) of queries and keys.

    Args:
        q: (B, S, H, D), or packed (tokens, H, D); any floating dtype, any strides.
        k: (B, S, K, D) or (tokens, K, D), in the dtype of q.
        positions: integers (S,) or (B, S), for packed q (tokens,). None counts from 0 in each sequence.
        cos, sin: tables (positions, rotary_dim / 2), of which the row of each position is used: for scaled
            frequencies (YaRN, Llama 3). They get no gradient. None computes the angles from ``base``, in
            integers: exact to 2^-29 at any position. With a position outside of the tables, the result is NaN
            on the Triton path, and an IndexError on the reference path.
        base: what the frequencies are powers of, ≥ 1; not used with tables.
        rotary_dim: how many columns of a head turn; even. None is all, or those of the tables.
        interleaved: whether pairs are neighboring columns (2i, 2i + 1), not (i, i + rotary_dim / 2).
        sections: for positions of three axes, (3, S), (3, B, S) or packed (3, tokens): how many of the pairs, from the
            first on, turn by the positions of the first axis, how many by those of the second, and of the third;
            together rotary_dim / 2. In Qwen2-VL (M-RoPE: arXiv:2409.12191, section 2.1) time, height and width of an
            image's patches, as ``(16, 24, 24)``. Text, whose axes agree, turns as without.

    Returns:
        ``(q', k')``, or q' where k is None: new tensors of the shapes and dtype of q and k.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, a base below 1, or only one of cos
            and sin.

    Example::

        class Attention(torch.nn.Module):
            def __init__(self, width, heads):
                super().__init__()
                self.heads, self.qkv = heads, torch.nn.Linear(width, 3 * width, bias=False)

            def forward(self, x):
                q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
                q, k = rope(q, k)
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    """
    chosen = _sections(sections, positions)
    rotary_dim = _check(q, k, positions, cos, sin, base, rotary_dim, chosen)
    if positions is not None and positions.dtype != torch.int32:
        positions = cast(positions, torch.int64)
    packed = q.dim() == 3
    if packed:
        q, k = q.unsqueeze(0), None if k is None else k.unsqueeze(0)
    if use_triton(q, k):
        rotation = (positions, cos, sin, base, rotary_dim, chosen, interleaved, False)
        q_out, k_out = rope_op(q, k, rotation)
    else:
        q_out, k_out = reference.rope(q, k, positions, cos, sin, base, rotary_dim, chosen, interleaved)
    if packed:
        q_out, k_out = q_out.squeeze(0), None if k is None else k_out.squeeze(0)
    return q_out if k is None else (q_out, k_out)


def _sections(sections: Sequence[int] | None, positions: Tensor | None) -> list[int]:
    """As a list, empty for positions of one axis."""
    if sections is None:
        return []
    try:
        chosen = [operator.index(size) for size in sections]
    except TypeError:
        chosen = []
    if len(chosen) != 3 or min(chosen) < 1:
        raise ValueError(f"sections must be three positive integers, got {sections}")
    if positions is None:
        raise ValueError("sections are of positions of three axes: give positions, too")
    return chosen


def _check(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int | None,
    sections: list[int],
) -> int:
    """The rotary width, after every argument was found sound."""
    check_floating("q", q)
    if q.dim() not in (3, 4):
        raise ValueError(f"q must be (B, S, H, D) or packed (tokens, H, D), got {tuple(q.shape)}")
    if k is not None:
        check_same_device("k", k, q)
        if k.dtype != q.dtype:
            raise ValueError(f"k must have the dtype of q, {q.dtype}, got {k.dtype}")
        if k.dim() != q.dim() or k.shape[:-2] != q.shape[:-2] or k.shape[-1] != q.shape[-1]:
            raise ValueError(f"k must agree with q {tuple(q.shape)} in all but its heads, got {tuple(k.shape)}")
    check_number("base", base, least=1.0)
    if (cos is None) != (sin is None):
        raise ValueError(f"{'cos' if cos is None else 'sin'} is missing: give cos and sin, or neither")
    if rotary_dim is None:
        rotary_dim = q.shape[-1] if cos is None else 2 * cos.shape[-1]
    rotary_dim = as_integer("rotary_dim", rotary_dim)
    if rotary_dim % 2 or not 0 < rotary_dim <= q.shape[-1]:
        raise ValueError(f"rotary_dim must be even and within the head width {q.shape[-1]}, got {rotary_dim}")
    if sections and sum(sections) != rotary_dim // 2:
        raise ValueError(f"sections must make up rotary_dim / 2 = {rotary_dim // 2} pairs, got {sections}")
    if positions is not None:
        check_same_device("positions", positions, q)
        axes = (3,) if sections else ()
        shapes = (*axes, *q.shape[-3:-2]), (*axes, *q.shape[:-2])
        is_count = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
        if not is_count or positions.shape not in shapes:
            raise ValueError(
                f"positions must be integers of shape {shapes[0]} or {shapes[1]}, "
                f"got {positions.dtype} of shape {tuple(positions.shape)}"
            )
    if cos is not None:
        check_parameter("cos", cos, q)
        check_parameter("sin", sin, q)
        if cos.shape != sin.shape:
            raise ValueError(f"sin must have the shape of cos {tuple(cos.shape)}, got {tuple(sin.shape)}")
        rows = 0 if positions is not None else q.shape[-3]
        if cos.dim() != 2 or cos.shape[0] < rows or cos.shape[1] != rotary_dim // 2:
            raise ValueError(
                f"cos and sin must be (at least {rows} positions, rotary_dim / 2 = {rotary_dim // 2}), "
                f"got {tuple(cos.shape)}"
            )
    return rotary_dim
