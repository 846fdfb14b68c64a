"""Rotary position embedding of queries and keys, in one launch."""

from torch import Tensor

from .checks import check_floating, check_same_device
from .reference import rotary as definition


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864, section 3.2.2)."""
    rotary_dim = _check(q, k, positions, cos, sin, rotary_dim)
    packed = q.dim() == 3
    if packed:
        q, k = q.unsqueeze(0), None if k is None else k.unsqueeze(0)
    out = definition.rope(q, k, positions, cos, sin, base, rotary_dim, interleaved)
    if packed:
        out = tuple(None if t is None else t.squeeze(0) for t in out)
    return out[0] if k is None else out


def _check(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    rotary_dim: int | None,
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
            raise ValueError(
                f"k must agree with q {tuple(q.shape)} in all but its heads, got {tuple(k.shape)}"
            )
    if (cos is None) != (sin is None):
        raise ValueError(f"{'cos' if cos is None else 'sin'} is missing: give cos and sin, or neither")
    if rotary_dim is None:
        rotary_dim = q.shape[-1] if cos is None else 2 * cos.shape[-1]
    if rotary_dim % 2 or not 0 < rotary_dim <= q.shape[-1]:
        raise ValueError(f"rotary_dim must be even and within the head width {q.shape[-1]}, got {rotary_dim}")
    if positions is not None:
        check_same_device("positions", positions, q)
        if positions.is_floating_point() or positions.shape not in (q.shape[-3:-2], q.shape[:-2]):
            raise ValueError(
                f"positions must be integers of shape {tuple(q.shape[-3:-2])} or {tuple(q.shape[:-2])}, "
                f"got {positions.dtype} of shape {tuple(positions.shape)}"
            )
    if cos is not None:
        check_same_device("cos", cos, q)
        check_same_device("sin", sin, q)
        if cos.shape != sin.shape:
            raise ValueError(f"sin must have the shape of cos {tuple(cos.shape)}, got {tuple(sin.shape)}")
        rows = 0 if positions is not None else q.shape[-3]
        if cos.dim() != 2 or cos.shape[0] < rows or cos.shape[1] != rotary_dim // 2:
            raise ValueError(
                f"cos and sin must be (at least {rows} positions, rotary_dim / 2 = {rotary_dim // 2}), "
                f"got {tuple(cos.shape)}"
            )
    return rotary_dim
