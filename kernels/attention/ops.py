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
from ..frame.launch import Chip, cdiv
from ..frame.operator import define
from ..frame.plan import Plan, planned
from .arguments import (
    Layout,
    addressable,
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


class TilePlan(NamedTuple):
    """A launch whose tiles may arrive by TMA."""

    plan: Plan
    described: list[tuple[int, tuple]]  # which tensors arrive as descriptors, and how

    @staticmethod
    def of(
        kernel: Any, programs: int, tile: Tile, arguments: dict[str, Any], described: dict[str, tuple]
    ) -> "TilePlan":
        plan = Plan(kernel, (programs,), **arguments, num_warps=tile.warps, num_stages=tile.stages)
        return TilePlan(plan, [(kernel.arg_names.index(name), how) for name, how in described.items()])

    def run(self, like: Tensor, *tensors: Tensor | None) -> None:
        """With memory for the descriptors that some TMA kernels build, set for this launch alone."""
        plan, described = self
        if described:
            given: list[Any] = [*tensors]
            for i, how in described:
                given[i] = descriptor(given[i], *how)
            plan.run(like, *given)
        elif plan.options["TMA"] != DEVICE.value:
            plan.run(like, *tensors)
        else:
            contextvars.copy_context().run(run_with_allocator, plan, like, tensors)


def run_with_allocator(plan: Plan, like: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=like.device))
    plan.run(like, *tensors)


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
    of_queries: Tensor | None  # int32, the ``block_lists`` of each block of queries, where there is a mask
    of_keys: Tensor | None  # and of each block of keys, for the backward pass
    scale: float
    left: int | None
    right: int | None
    softcap: float | None
    dropout_p: float
    block_size: int  # rows and keys of a block of the mask

    def allocate(self) -> tuple[Tensor, Tensor]:
        """out like q, and lse as (B, H, S) float32; packed (1, H, N)."""
        shape = Layout.of(self.q.shape, self.q.stride()).shape
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
    (q, k, v, sinks, alibi, seed, cu_q, cu_k, *used, lists, _), options = call[:13], call[13:]
    scale, left, right, softcap, _, _ = options
    invariant = is_batch_invariant()
    if (
        not invariant
        and cu_q is None
        and seed is None
        and lists is None
        and splits_keys(q.shape[2], q.shape[1] // k.shape[1], k.shape[2])
    ):
        full = (None, None, sinks, alibi, None, 0)
        return run_decode(DecodeCall(q, addressable(k), addressable(v), *full, scale, left, right, softcap))
    out, lse = call.allocate()
    q, k, v = addressable(q), addressable(k), addressable(v)
    if cu_q is not None:
        out.zero_()  # Tokens after the last sequence belong to no tile.
        lse.fill_(-math.inf)
    chip = Chip.of(q.device)
    layouts = (q.shape, k.shape, q.stride(), k.stride(), v.stride(), out.stride())
    sequences, mask_shape = None if cu_q is None else cu_q.shape[0] - 1, None if lists is None else lists.shape
    plan = forward_plan(chip, q.element_size(), invariant, layouts, sequences, mask_shape, *options)
    if plan.tiles is None:
        assert sinks is None, "warp groups have no sinks"
        assert alibi is None, "warp groups have no ALiBi"
        launch_warp_groups(chip, q, k, v, out, lse, scale, right, alternate=plan.form == ALTERNATING)
        return out, lse
    plan.tiles.run(q, q, k, v, out, lse, sinks, alibi, lists, seed, cu_q, cu_k, *used)
    return out, lse


class ForwardPlan(NamedTuple):
    form: str
    tiles: TilePlan | None  # None for warp groups


@planned
def forward_plan(
    chip: Chip,
    itemsize: int,
    invariant: bool,
    layouts: tuple[tuple[int, ...], ...],  # shapes of q and k, strides of q, k, v and out
    sequences: int | None,  # in a packed batch
    mask_shape: tuple[int, ...] | None,  # of its lists
    scale: float,
    left: int | None,
    right: int | None,
    softcap: float | None,
    dropout_p: float,
    block: int,
) -> ForwardPlan:
    shape, k_shape, *strides = layouts
    q, k, v, out = map(Layout.of, (shape, k_shape, k_shape, shape), strides)
    B, H, S, D = q.shape
    packed, masked, is_heavy = sequences is not None, mask_shape is not None, heavy(softcap, dropout_p)
    tile = for_mask(forward_tile(chip, D, itemsize, is_heavy), masked)
    tiles = tile_count(S, tile.block_m, sequences)
    # Packed tiles, and those of a mask, are no pairs; heavy ones share multiprocessors.
    pairs_up = not packed and not masked and not is_heavy
    keys = typical_keys(S, k.shape[2], left, right) / tile.block_n
    form = TILES if invariant else forward_form(chip, D, tile, tiles, B * H, keys, pairs_up)
    if form in (WARP_GROUPS, ALTERNATING):
        assert pairs_up, "warp groups have no dropout, softcap, packed sequences or masks of blocks"
        assert left is None, "warp groups have no window to the left"
        return ForwardPlan(form, None)
    own, described = tile_arguments(tile, {"q": q, "out": out}, {"k": k, "v": v}, packed)
    arguments = {
        **own,
        **size_arguments(q, k, sequences),
        **scalar_arguments(scale, left, right, softcap),
        **dropout_arguments(dropout_p),
        **mask_arguments(mask_shape, block),
        "tiles": tiles,
        "ROTATED": tile.rotated,
        "PERSISTENT": form == PERSISTENT,
        "IN_ORDER": invariant,
    }
    programs = persistent_programs(chip, tile.warps) if form == PERSISTENT else tiles * H * B
    return ForwardPlan(form, TilePlan.of(forward_kernel, programs, tile, arguments, described))


def backward(call: AttentionBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv like q, k, v, and delta = rowsum(out ∘ d_out) - d_lse, which gives the gradient of sinks."""
    d_out, d_lse, (out, lse, forward_call) = call
    q, k, v, _, alibi, seed, cu_q, cu_k, *used, of_queries, of_keys = forward_call[:13]
    assert (of_queries is None) == (of_keys is None), "the lists of keys are for the backward pass"
    *gradients, delta = call.allocate()
    dq, dk, dv = gradients
    if cu_q is not None:
        for gradient in gradients:
            gradient.zero_()
    q, k, v, out, d_out = (addressable(x) for x in (q, k, v, out, d_out))
    strides = tuple([x.stride() for x in (q, k, v, out, d_out, dq, dk, dv)])
    sequences = None if cu_q is None else (cu_q.shape[0] - 1, cu_k.shape[0] - 1)
    mask_shape = None if of_queries is None else of_queries.shape
    layouts = (q.shape, k.shape, *strides)
    plan = backward_plan(Chip.of(q.device), q.element_size(), layouts, sequences, mask_shape, *forward_call[13:])
    plan.delta.run(q, out, d_out, None if d_lse is None else d_lse.contiguous(), delta)
    plan.keys.run(q, q, k, v, d_out, lse, delta, dk, dv, alibi, of_keys, seed, cu_q, cu_k, *used)
    plan.queries.run(q, q, k, v, d_out, lse, delta, dq, alibi, of_queries, seed, cu_q, cu_k, *used)
    return *gradients, delta


class BackwardPlan(NamedTuple):
    delta: Plan
    keys: TilePlan
    queries: TilePlan


@planned
def backward_plan(
    chip: Chip,
    itemsize: int,
    layouts: tuple[tuple[int, ...], ...],  # shapes of q and k, strides of q, k, v, out, d_out, dq, dk, dv
    sequences: tuple[int, int] | None,  # by queries and by keys
    mask_shape: tuple[int, ...] | None,  # of its lists
    scale: float,
    left: int | None,
    right: int | None,
    softcap: float | None,
    dropout_p: float,
    block: int,
) -> BackwardPlan:
    shape, k_shape, *strides = layouts
    shapes = (shape, k_shape, k_shape, shape, shape, shape, k_shape, k_shape)
    q, k, v, out, d_out, dq, dk, dv = map(Layout.of, shapes, strides)
    B, H, S, D = q.shape
    by_queries, by_keys = sequences or (None, None)
    packed, masked = sequences is not None, mask_shape is not None
    tiles = cdiv(S, DELTA_TILE.block_m)
    delta = Plan(
        delta_kernel,
        (tiles * H * B,),
        **matrices(out=out, d_out=d_out),
        rows_in_all=S,
        heads=H,
        tiles=tiles,
        D=D,
        BLOCK_M=DELTA_TILE.block_m,
        BLOCK_D=padded_width(D),
        num_warps=DELTA_TILE.warps,
        num_stages=DELTA_TILE.stages,
    )
    shared = {
        **size_arguments(q, k, by_queries),
        **scalar_arguments(scale, left, right, softcap),
        **dropout_arguments(dropout_p),
        **mask_arguments(mask_shape, block),
        "natural_scale": scale,
    }
    rows_read, keys_read = {"q": q, "d_out": d_out}, {"k": k, "v": v}
    choice = (chip, D, itemsize, heavy(softcap, dropout_p))
    tile = chosen("keys_gradient") or for_packed(keys_gradient_tile(*choice), chip, D, packed)
    tile = for_mask(tile, masked)
    tiles = tile_count(k.shape[2], tile.block_n, by_keys)
    own, described = tile_arguments(tile, rows_read, {**keys_read, "dk": dk, "dv": dv}, packed)
    arguments = {**shared, **own, "tiles": tiles}
    of_keys = TilePlan.of(keys_gradient_kernel, tiles * k.shape[1] * B, tile, arguments, described)
    tile = for_mask(queries_gradient_tile(*choice), masked)
    tiles = tile_count(S, tile.block_m, by_queries)
    own, described = tile_arguments(tile, {**rows_read, "dq": dq}, keys_read, packed)
    arguments = {**shared, **own, "tiles": tiles}
    of_queries = TilePlan.of(queries_gradient_kernel, tiles * H * B, tile, arguments, described)
    return BackwardPlan(delta, of_keys, of_queries)


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
