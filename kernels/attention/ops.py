"""The operators: allocation, launches, and the derivative of attention as PyTorch sees it.

Both layouts reach the kernels as (B, H, S, D): packed tokens (N, H, D) are one batch entry with N rows, in
which ``cu_seqlens`` says where sequences start.
"""

import contextvars
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..frame._triton import triton
from ..frame.descriptors import descriptor
from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv, run
from ..frame.operator import define
from .arguments import (
    addressable,
    as_heads,
    block_lists,
    dropout_arguments,
    empty_rows,
    mask_arguments,
    matrices,
    scalar_arguments,
    size_arguments,
    tile_arguments,
    tile_count,
    typical_keys,
)
from .backward import delta_kernel, keys_gradient_kernel, queries_gradient_kernel
from .decode import DecodeCall, run_decode
from .forward import forward_kernel
from .forward_hopper import launch_warp_groups
from .launch import (
    ALTERNATING,
    PERSISTENT,
    TILES,
    WARP_GROUPS,
    Tile,
    chosen,
    for_mask,
    for_packed,
    forward_form,
    forward_tile,
    heavy,
    keys_gradient_tile,
    padded_width,
    persistent_programs,
    queries_gradient_tile,
    splits_keys,
)
from .tiles import DEVICE

DELTA_TILE = Tile(64, 0, 4, 1)  # One pass over out and its gradient: memory-bound.


def launch(kernel, programs, like, tile, arguments):
    """``run``, with memory for the descriptors that some TMA kernels build, set for this launch alone."""
    arguments |= {"num_warps": tile.warps, "num_stages": tile.stages}
    if arguments.get("TMA") != DEVICE.value:
        run(kernel, (programs,), like, **arguments)
        return

    def allocate(size, alignment, stream):
        return torch.empty(size, dtype=torch.int8, device=like.device)

    def run_with_allocator():
        triton.set_allocator(allocate)
        run(kernel, (programs,), like, **arguments)

    contextvars.copy_context().run(run_with_allocator)


class AttentionCall(NamedTuple):
    q: Tensor  # (B, H, S, D) or packed (N, H, D)
    k: Tensor  # (B, K, T, D) or packed (N_k, K, D)
    v: Tensor  # as k
    sinks: Tensor | None  # (H,)
    alibi: Tensor | None  # float32 (B or sequences, H)
    seed: Tensor | None  # int64 ()
    cu_seqlens_q: Tensor | None  # int32 (sequences + 1,)
    cu_seqlens_k: Tensor | None  # int32 (sequences + 1,)
    used_q: Tensor | None  # int32 (sequences,), as the following
    used_k: Tensor | None
    pad_k: Tensor | None
    block_mask: Tensor | None  # bool (B or 1, H or 1, S / block, T / block)
    scale: float
    left: int | None
    right: int | None
    softcap: float | None
    dropout_p: float
    block_size: int  # rows and keys of a block of the mask

    @property
    def packing(self) -> tuple:
        return self[6:11]

    def allocate(self) -> tuple[Tensor, Tensor]:
        """out like q, and lse as (B, H, S) float32; packed (1, H, N)."""
        shape = self.q.shape if self.cu_seqlens_q is None else as_heads(self.q).shape
        return empty_rows(self.q), self.q.new_empty(shape[:3], dtype=torch.float32)


class AttentionKept(NamedTuple):
    out: Tensor
    lse: Tensor
    call: AttentionCall

    @staticmethod
    def fields(call: AttentionCall, out: Tensor, lse: Tensor) -> tuple:
        return out, lse, call


class AttentionBackwardCall(NamedTuple):
    d_out: Tensor
    d_lse: Tensor | None
    kept: AttentionKept

    def allocate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq, dk, dv like q, k, v, and delta like lse."""
        q, k, v, *_ = self.kept.call
        return empty_rows(q), empty_rows(k), empty_rows(v), torch.empty_like(self.kept.lse)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    q, k, v, sinks, alibi, seed, cu_q, cu_k, used_q, used_k, pad_k, mask, scale, _, right, softcap, dropout_p, _ = call
    invariant = is_batch_invariant()
    if (
        not invariant
        and cu_q is None
        and seed is None
        and mask is None
        and splits_keys(q.shape[2], q.shape[1] // k.shape[1], k.shape[2])
    ):
        options = (sinks, alibi, None, 0, scale, call.left, right, softcap)
        return run_decode(DecodeCall(q, addressable(k), addressable(v), None, None, *options))
    out, lse = call.allocate()
    q, k, v, out_heads = addressable(q), addressable(k), addressable(v), out
    if cu_q is not None:
        out.zero_()  # Tokens after the last sequence belong to no tile.
        lse.fill_(-math.inf)
        q, k, v, out_heads = as_heads(q), as_heads(k), as_heads(v), as_heads(out)
    chip, is_heavy = Chip.of(q.device), heavy(softcap, dropout_p)
    tile = for_mask(forward_tile(chip, q.shape[3], q.element_size(), is_heavy), mask is not None)
    layouts = (q.shape, k.shape, q.stride(), k.stride(), v.stride(), out_heads.stride())
    lengths = None if cu_q is None else cu_q.shape, None if mask is None else mask.shape
    key = chip, tile, chosen("forward"), invariant, *layouts, *lengths, *call[12:]
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        plan = _plans[key] = plan_forward(chip, tile, invariant, call, q, k, v, out_heads)
    if plan.form in (WARP_GROUPS, ALTERNATING):
        assert sinks is None, "warp groups have no sinks"
        assert alibi is None, "warp groups have no ALiBi"
        launch_warp_groups(chip, q, k, v, out_heads, lse, scale, right, alternate=plan.form == ALTERNATING)
        return out, lse
    arguments = {
        **plan.arguments,
        "q": q,
        "k": k,
        "v": v,
        "out": out_heads,
        "lse": lse,
        "sinks": sinks,
        "alibi": alibi,
        "seed": seed,
        "cu_q": cu_q,
        "cu_k": cu_k,
        "used_q": used_q,
        "used_k": used_k,
        "pad_k": pad_k,
        "mask": None if mask is None else block_lists(mask),
    }
    for name, how in plan.described:
        arguments[name] = descriptor(arguments[name], *how)
    launch(forward_kernel, plan.programs, q, tile, arguments)
    return out, lse


class ForwardPlan(NamedTuple):
    """What a forward pass launches, but for its tensors."""

    form: str
    programs: int
    arguments: dict[str, Any]
    described: list[tuple[str, tuple]]  # which tensors are described to TMA, and how


# Choices and arguments of a call follow from its layouts and options, and take the host longer than to find those of a
# call like it.
_plans: dict[tuple, ForwardPlan] = {}
MOST_PLANS = 4096


def plan_forward(
    chip: Chip, tile: Tile, invariant: bool, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, out: Tensor
) -> ForwardPlan:
    """For q and out (B, H, S, D), k and v (B, K, T, D) of a call."""
    cu_q, mask, (scale, left, right, softcap, dropout_p, block) = call.cu_seqlens_q, call.block_mask, call[12:]
    B, H, S, D = q.shape
    tiles = tile_count(S, tile.block_m, cu_q)
    # Packed tiles, and those of a mask, are no pairs; heavy ones share multiprocessors.
    pairs_up = cu_q is None and mask is None and not heavy(softcap, dropout_p)
    steps = typical_keys(S, k.shape[2], left, right) / tile.block_n
    form = TILES if invariant else forward_form(chip, D, tile, tiles, B * H, steps, pairs_up)
    if form in (WARP_GROUPS, ALTERNATING):
        assert pairs_up, "warp groups have no dropout, softcap, packed sequences or masks of blocks"
        assert left is None, "warp groups have no window to the left"
    arguments = {
        **size_arguments(q, k, cu_q),
        **scalar_arguments(scale, left, right, softcap),
        **dropout_arguments(dropout_p),
        **mask_arguments(mask, block),
        **tile_arguments(tile, {"q": q, "out": out}, {"k": k, "v": v}, cu_q is not None),
        "tiles": tiles,
        "ROTATED": tile.rotated,
        "PERSISTENT": form == PERSISTENT,
        "IN_ORDER": invariant,
    }
    tensors = [(name, arguments.pop(name)) for name in ("q", "k", "v", "out")]
    described = [(name, (x.shape, x.strides, tuple(x.block_shape))) for name, x in tensors if not isinstance(x, Tensor)]
    programs = persistent_programs(chip, tile.warps) if form == PERSISTENT else tiles * H * B
    return ForwardPlan(form, programs, arguments, described)


def backward(call: AttentionBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv like q, k, v, and delta = rowsum(out ∘ d_out) - d_lse, which gives the gradient of sinks."""
    d_out, d_lse, (out, lse, forward_call) = call
    q, k, v, _, alibi, seed, cu_q, cu_k, *_, mask, scale, left, right, softcap, dropout_p, block = forward_call
    *gradients, delta = call.allocate()
    if cu_q is not None:
        for gradient in gradients:
            gradient.zero_()
    q, k, v, out, d_out = (addressable(x) for x in (q, k, v, out, d_out))
    q, k, v, out, d_out, dq, dk, dv = (as_heads(x) for x in (q, k, v, out, d_out, *gradients))
    B, H, S, D = q.shape
    launch(
        delta_kernel,
        cdiv(S, DELTA_TILE.block_m) * H * B,
        q,
        DELTA_TILE,
        {
            **matrices(out=out, d_out=d_out),
            "d_lse": None if d_lse is None else d_lse.contiguous(),
            "delta": delta,
            "rows_in_all": S,
            "heads": H,
            "tiles": cdiv(S, DELTA_TILE.block_m),
            "D": D,
            "BLOCK_M": DELTA_TILE.block_m,
            "BLOCK_D": padded_width(D),
        },
    )
    shared = {
        **size_arguments(q, k, cu_q),
        **dict(zip(("cu_q", "cu_k", "used_q", "used_k", "pad_k"), forward_call.packing, strict=True)),
        **scalar_arguments(scale, left, right, softcap),
        **dropout_arguments(dropout_p),
        "seed": seed,
        **mask_arguments(mask, block),
        "alibi": alibi,
        "natural_scale": scale,
        "lse": lse,
        "delta": delta,
    }
    by_rows, by_keys = {"q": q, "d_out": d_out}, {"k": k, "v": v}
    choice = (Chip.of(q.device), D, q.element_size(), heavy(softcap, dropout_p))
    tile = chosen("keys_gradient") or for_packed(keys_gradient_tile(*choice), *choice[:2], cu_q is not None)
    tile = for_mask(tile, mask is not None)
    tiles = tile_count(k.shape[2], tile.block_n, cu_k)
    own = tile_arguments(tile, by_rows, {**by_keys, "dk": dk, "dv": dv}, cu_q is not None)
    of_keys = None if mask is None else block_lists(mask.mT)
    launch(
        keys_gradient_kernel,
        tiles * k.shape[1] * B,
        q,
        tile,
        {**shared, **own, "mask_of_keys": of_keys, "tiles": tiles},
    )
    tile = for_mask(queries_gradient_tile(*choice), mask is not None)
    tiles = tile_count(S, tile.block_m, cu_q)
    own = tile_arguments(tile, {**by_rows, "dq": dq}, by_keys, cu_q is not None)
    of_rows = None if mask is None else block_lists(mask)
    launch(queries_gradient_kernel, tiles * H * B, q, tile, {**shared, **own, "mask": of_rows, "tiles": tiles})
    return *gradients, delta


_backward_op = define("attention_backward", AttentionBackwardCall, backward)


def _differentiate(kept: AttentionKept, wanted, d_out: Tensor | None, d_lse: Tensor | None) -> tuple:
    out, lse, call = kept
    d_out = torch.zeros_like(out) if d_out is None else d_out
    dq, dk, dv, delta = _backward_op(d_out, d_lse, kept)
    d_sinks = None
    if call.sinks is not None:
        weight = torch.exp(call.sinks.float()[:, None] - lse)  # What the sink takes of each row's softmax.
        d_sinks = -(weight * delta).nan_to_num(0.0).sum((0, 2)).to(call.sinks.dtype)
    return dq, dk, dv, d_sinks


attention_op = define("attention", AttentionCall, forward, keeps=AttentionKept, backward=_differentiate)
