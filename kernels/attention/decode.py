"""Attention of a few new queries to a cache of keys and values, contiguous or in pages."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.call import MutatedTensor
from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv, contiguous
from ..frame.operator import define
from ..frame.plan import Plan, planned
from . import reference
from .arguments import Layout, addressable, empty_rows, matrices, scalar_arguments
from .checks import check_cache, check_new, check_options, check_per_sequence, slopes_by_sequence, window_bounds
from .decode_kernels import append_kernel, combine_kernel, decode_kernel
from .launch import decode_splits, decode_tile, padded_width


def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    page_table: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    leftpad: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``flash_attention(q, k, v, causal=True)`` against the first ``cache_seqlens[b]`` rows of each cache
    entry.

    The cache is split over T, so that a single query fills the chip (Flash-Decoding, Dao et al. 2023); the
    parts are combined in a fixed order, so that equal inputs give equal bits. Nothing waits for the host, and
    nothing is
    compiled again as the cache fills: the call can be captured in a CUDA graph and replayed.

    Args:
        q: (B, H, S, D): the newest S queries of each entry, S usually 1.
        k_cache, v_cache: (B, K, T, D), or with ``page_table`` (pages, K, page size, D); any strides with D
            innermost.
        cache_seqlens: (B,) int32: filled rows of each entry, without the new ones.
        k_new, v_new: (B, K, S_new, D), written into the cache behind the filled rows first (in place), and
            attended to. ``cache_seqlens`` itself is left to the caller to advance. Rows past the cache's end
            are dropped.
        page_table: (B, pages of an entry) int32: which pages hold an entry's rows, in order. Pages may be
            shared.
        causal: The last query stands at the last key; False lets every query see every row.
        scale, window, softcap, sinks, alibi_slopes, return_lse: as for ``flash_attention``.
        leftpad: (B,) int32: how many rows at the start of each entry hold padding, and are not seen.

    Returns:
        (B, H, S, D), or with ``return_lse`` also (B, H, S) float32. There is no gradient.

    Raises:
        ValueError: for shapes, dtypes or devices outside the above, and where a gradient would be needed.

    >>> import torch
    >>> cache = torch.zeros(2, 1, 4, 16, 64)  # keys and values: B=1, K=4, up to 16 rows
    >>> lengths = torch.tensor([0], dtype=torch.int32)
    >>> with torch.no_grad():
    ...     for token in range(3):
    ...         q, k, v = torch.randn(1, 8, 1, 64), torch.randn(1, 4, 1, 64), torch.randn(1, 4, 1, 64)
    ...         out = flash_decode(q, cache[0], cache[1], lengths, k_new=k, v_new=v)
    ...         lengths += 1
    >>> out.shape
    torch.Size([1, 8, 1, 64])
    """
    check_cache(q, k_cache, v_cache, page_table)
    sinks = check_options(q, scale, softcap, sinks, 0.0)
    lengths = check_per_sequence("cache_seqlens", cache_seqlens, q.shape[0], q)
    leftpad = check_per_sequence("leftpad", leftpad, q.shape[0], q)
    alibi = slopes_by_sequence(alibi_slopes, q, q.shape[0])
    new = check_new(q, k_cache, k_new, v_new)
    tensors = (q, k_cache, v_cache, k_new, v_new, sinks)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise ValueError("flash_decode has no gradient: call it under torch.no_grad(), or use flash_attention")
    left, right = window_bounds(causal, window)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if scale < 0:
        q, scale = -q, -scale
    triton = use_triton(q, k_cache, v_cache)
    if new:
        append = append_op if triton else reference.append_to_cache
        append(k_cache, v_cache, k_new, v_new, lengths, page_table)
    compute = decode_op if triton else reference.decode
    options = (page_table, sinks, alibi, leftpad, new, scale, left, right, softcap)
    out, lse = compute(q, k_cache, v_cache, lengths, *options)
    return (out, lse) if return_lse else out


class DecodeCall(NamedTuple):
    q: Tensor  # (B, H, S, D)
    k_cache: Tensor  # (B, K, T, D), or (pages, K, page size, D)
    v_cache: Tensor  # as k_cache
    cache_seqlens: Tensor | None  # int32 (B,); None: every entry is full
    page_table: Tensor | None  # int32 (B, pages of an entry)
    sinks: Tensor | None  # (H,)
    alibi: Tensor | None  # float32 (B, H)
    leftpad: Tensor | None  # int32 (B,)
    new: int  # rows appended
    scale: float
    left: int | None
    right: int | None
    softcap: float | None

    def allocate(self) -> tuple[Tensor, Tensor]:
        return empty_rows(self.q), self.q.new_empty(self.q.shape[:3], dtype=torch.float32)


class AppendCall(NamedTuple):
    k_cache: MutatedTensor  # as of a DecodeCall
    v_cache: MutatedTensor
    k_new: Tensor  # (B, K, S_new, D)
    v_new: Tensor  # as k_new
    cache_seqlens: Tensor
    page_table: Tensor | None

    def allocate(self) -> None:
        """It works in place."""


def check_addressable(name: str, cache: Tensor) -> None:
    """A cache is never copied: it may be large, and appending writes to it."""
    if addressable(cache) is not cache:
        raise ValueError(
            f"{name} has D innermost and its other strides in multiples of 8, from a 16-byte boundary on;"
            f" got strides {cache.stride()}"
        )


def page_arguments(cache: tuple[int, ...], page_table: tuple[int, ...] | None) -> dict[str, Any]:
    """Of a cache of this shape, with a table of this shape."""
    if page_table is None:
        return {"pages_per_entry": 0, "PAGE": 0, "T": cache[2]}
    return {"pages_per_entry": page_table[1], "PAGE": cache[2], "T": page_table[1] * cache[2]}


@planned
def append_plan(
    shape: tuple[int, ...],
    cache: tuple[int, ...],
    page_table: tuple[int, ...] | None,
    strides: tuple[tuple[int, ...], ...],
) -> Plan:
    """``shape`` of the new rows; strides of both caches and both kinds of new rows."""
    B, K, new, D = shape
    block = min(16, 1 << (new - 1).bit_length())
    layouts = map(Layout, (cache, cache, shape, shape), strides)
    return Plan(
        append_kernel,
        (cdiv(new, block), K, B),
        **matrices(**dict(zip(("k", "v", "k_new", "v_new"), layouts, strict=True))),
        **page_arguments(cache, page_table),
        new=new,
        D=D,
        BLOCK_M=block,
        BLOCK_D=padded_width(D),
        num_warps=4,
    )


def run_append(call: AppendCall) -> None:
    k_cache, v_cache, k_new, v_new, cache_seqlens, page_table = call
    check_addressable("k_cache", k_cache)
    check_addressable("v_cache", v_cache)
    k_new, v_new = addressable(k_new), addressable(v_new)
    pages = None if page_table is None else page_table.shape
    strides = (k_cache.stride(), v_cache.stride(), k_new.stride(), v_new.stride())
    plan = append_plan(k_new.shape, k_cache.shape, pages, strides)
    plan.run(k_new, k_cache, v_cache, k_new, v_new, cache_seqlens, contiguous(page_table))


class DecodePlan(NamedTuple):
    decode: Plan
    splits: int
    combine: Plan | None


@planned
def decode_plan(
    chip: Chip,
    itemsize: int,
    invariant: bool,
    shape: tuple[int, ...],
    cache: tuple[int, ...],
    page_table: tuple[int, ...] | None,
    strides: tuple[tuple[int, ...], ...],
    new: int,
    scale: float,
    left: int | None,
    right: int | None,
    softcap: float | None,
) -> DecodePlan:
    """``shape`` of q; strides of q, both caches and out."""
    q, k, v, out = map(Layout, (shape, cache, cache, shape), strides)
    B, H, S, D = shape
    K = cache[1]
    rows = S * (H // K)
    # In batch-invariant mode one tile for any number of rows, and one order of the keys.
    tile = decode_tile(chip, D, itemsize, 64 if invariant else rows)
    pages = page_arguments(cache, page_table)
    splits = 1 if invariant else decode_splits(chip, cdiv(rows, tile.block_m) * K * B, pages["T"])
    part = out if splits == 1 else Layout(shape, (H * S * D, S * D, D, 1))
    sizes = {"rows_in_all": B * H * S, "heads": H, "S": S, "splits": splits, "D": D, "BLOCK_D": padded_width(D)}
    decode = Plan(
        decode_kernel,
        (cdiv(rows, tile.block_m) * splits, K, B),
        **matrices(q=q, k=k, v=v, part=part),
        **pages,
        **scalar_arguments(scale, left, right, softcap),
        **sizes,
        new=new,
        GROUP=H // K,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    combine = None
    if splits > 1:
        combine = Plan(combine_kernel, (B * H * S,), **matrices(out=out), **sizes, BLOCK_N=16, num_warps=2)
    return DecodePlan(decode, splits, combine)


def run_decode(call: DecodeCall) -> tuple[Tensor, Tensor]:
    q, k_cache, v_cache, cache_seqlens, page_table, sinks, alibi, leftpad, new, scale, left, right, softcap = call
    check_addressable("k_cache", k_cache)
    check_addressable("v_cache", v_cache)
    out, lse = call.allocate()
    q = addressable(q)
    pages = None if page_table is None else page_table.shape
    strides = (q.stride(), k_cache.stride(), v_cache.stride(), out.stride())
    layouts = (q.shape, k_cache.shape, pages, strides)
    options = (new, scale, left, right, softcap)
    plan = decode_plan(Chip.of(q.device), q.element_size(), is_batch_invariant(), *layouts, *options)
    part, part_lse = out, lse
    if plan.combine is not None:
        part = q.new_empty((plan.splits, *q.shape), dtype=torch.float32)
        part_lse = lse.new_empty((plan.splits, *lse.shape))
    caches = (k_cache, v_cache)
    plan.decode.run(q, q, *caches, part, part_lse, cache_seqlens, contiguous(page_table), sinks, alibi, leftpad)
    if plan.combine is not None:
        plan.combine.run(q, part, part_lse, out, lse)
    return out, lse


decode_op = define("attention_decode", DecodeCall, run_decode)
append_op = define("attention_append", AppendCall, run_append)
