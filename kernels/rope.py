"""Rotary position embedding of queries and keys, in one launch.

Pair i of a head's columns is turned by the angle ``a = position · base^(−2i/rotary_dim)``:

    first'  = first · cos a − second · sin a
    second' = second · cos a + first · sin a

The pairs are columns i and i + rotary_dim/2 (half-split, as in Llama and Qwen), or 2i and 2i + 1 (interleaved, as
in the paper and GPT-J). Columns from rotary_dim on pass. The gradient is the turn back, so that nothing but the
positions is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .backend import use_triton
from .checks import check_floating, check_same_device
from .gate import GateCase
from .launch import Device, cdiv, contiguous, empty, next_power_of_2, run
from .operator import define
from .reference import rotary as definition
from .rope_kernels import EXPONENT_BITS, rope_kernel
from .tuned import tuned

# ---------------------------------------------------------------------------------------------- launch choices

TILE = 4096  # elements a program takes at most: 16 a thread of eight warps


@dataclass(frozen=True)
class RopeLaunch:
    """One program rotates ``heads`` heads of a token."""

    heads: int
    warps: int


@tuned("rope", RopeLaunch)
@lru_cache
def launch(device: Device, heads: int, rotary_dim: int) -> RopeLaunch:
    """As many heads as share one computation of the angles without spilling."""
    columns = 2 * next_power_of_2(rotary_dim // 2)
    block = min(next_power_of_2(heads), max(1, TILE // columns))
    return RopeLaunch(block, min(max(block * columns // 512, 1), 8))


# ---------------------------------------------------------------------------------------------------- operator


def _allocate(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    return empty(q), q.new_empty(0) if k is None else empty(k)


def _run(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
    rotary_dim: int,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    q_out, k_out = _allocate(q, k, positions, cos, sin, base, rotary_dim, interleaved, inverse)
    batch, length, q_heads, width = q.shape
    k_heads = 0 if k is None else k.shape[2]
    q, k = (t if t is None or t.stride(3) == 1 else t.contiguous() for t in (q, k))
    position_strides = (0, 0)
    if positions is not None:
        position_strides = (0, *positions.stride()) if positions.dim() == 1 else positions.stride()
    chosen = launch(Device.of(q.device), max(q_heads, k_heads), rotary_dim)
    passed = width - rotary_dim
    run(
        rope_kernel,
        (batch * length, cdiv(q_heads, chosen.heads) + cdiv(k_heads, chosen.heads)),
        q,
        *(q, k, q_out, k_out, positions, contiguous(cos), contiguous(sin)),
        *(length, 0 if cos is None else cos.shape[0]),
        round(math.log2(base) * 2 / rotary_dim * 2**EXPONENT_BITS),
        *q.stride()[:3],
        *((0, 0, 0) if k is None else k.stride()[:3]),
        *position_strides,
        Q_HEADS=q_heads,
        K_HEADS=k_heads,
        HEADS=chosen.heads,
        HALF=rotary_dim // 2,
        HALF_BLOCK=next_power_of_2(rotary_dim // 2),
        PASSED=passed,
        PASSED_BLOCK=next_power_of_2(passed),
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        num_warps=chosen.warps,
    )
    return q_out, k_out


def _save(ctx, inputs, output) -> None:
    _, k, *tables, ctx.base, ctx.rotary_dim, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(*tables)
    ctx.has_k = k is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = [grad for grad in (grad_q, grad_k if ctx.has_k else None) if grad is not None]
    turned = [None, None]
    if grads:
        options = (ctx.base, ctx.rotary_dim, ctx.interleaved, not ctx.inverse)
        turned = list(_rope_op(grads[0], *grads[1:] or [None], *ctx.saved_tensors, *options))
        if len(grads) == 1:
            turned = [turned[0], None] if grad_q is not None else [None, turned[0]]
    return *turned, *[None] * 7


_rope_op = define(
    "rope(Tensor q, Tensor? k, Tensor? positions, Tensor? cos, Tensor? sin, float base, int rotary_dim, "
    "bool interleaved, bool inverse) -> (Tensor, Tensor)",
    _run,
    _allocate,
    backward=_differentiate,
    save=_save,
)

# --------------------------------------------------------------------------------------------- public function


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
        interleaved: whether pairs are neighbouring columns (2i, 2i + 1), not (i, i + rotary_dim / 2).

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
    rotary_dim = _check(q, k, positions, cos, sin, base, rotary_dim)
    packed = q.dim() == 3
    if packed:
        q, k = q.unsqueeze(0), None if k is None else k.unsqueeze(0)
    if use_triton(q, k):
        q_out, k_out = _rope_op(q, k, positions, cos, sin, base, rotary_dim, interleaved, False)
    else:
        q_out, k_out = definition.rope(q, k, positions, cos, sin, base, rotary_dim, interleaved)
    if packed:
        q_out, k_out = q_out.squeeze(0), None if k is None else k_out.squeeze(0)
    return q_out if k is None else (q_out, k_out)


def _check(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    base: float,
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
    if base < 1:
        raise ValueError(f"base must be at least 1, got {base}")
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


# ------------------------------------------------------------------------------------------------ compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Head widths from 64 to 256, few heads and many, both layouts, a partial width, tables and none."""
    for rotary_dim in (64, 128, 256):
        for heads in (1, 8, 64):
            yield _gate_case(heads, rotary_dim, rotary_dim, False, table=True)
        yield _gate_case(32, rotary_dim, rotary_dim, False, table=False)
        yield _gate_case(32, rotary_dim, rotary_dim, True, table=True)
    yield _gate_case(32, 128, 64, False, table=True)
    yield _gate_case(32, 96, 96, True, table=False)


def _gate_case(heads: int, width: int, rotary_dim: int, interleaved: bool, *, table: bool) -> GateCase:
    def call() -> None:
        q = torch.empty(2, 64, heads, width, dtype=torch.bfloat16, device="meta")
        cos = torch.empty(64, rotary_dim // 2, device="meta") if table else None
        _run(q, q, None, cos, cos, 10000.0, rotary_dim, interleaved, False)

    layout = "interleaved" if interleaved else "half-split"
    return GateCase(
        "rope", f"{heads} heads, {rotary_dim} of {width}, {layout}, {'table' if table else 'base'}", call
    )
