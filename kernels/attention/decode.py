"""Attention of a few new queries to a cache of keys and values, contiguous or in pages."""

import math

import torch

from ..backend import use_triton
from ..launch import Device, cdiv, run
from ..operator import define
from ..reference import attention as reference
from .api import check_options, window_bounds
from .decode_kernels import append_kernel, combine_kernel, decode_kernel
from .launch import decode_splits, decode_tile, padded_width
from .ops import addressable, empty_rows, matrices, scalar_arguments


def flash_decode(
    q,
    k_cache,
    v_cache,
    cache_seqlens,
    *,
    k_new=None,
    v_new=None,
    page_table=None,
    causal=True,
    scale=None,
    window=None,
    softcap=None,
    sinks=None,
    return_lse=False,
):
    """``flash_attention(q, k, v, causal=True)`` against the first ``cache_seqlens[b]`` rows of each cache
    entry.

    The cache is split over T, so that a single query fills the chip (Flash-Decoding, Dao et al. 2023); the
    parts are combined in a fixed order, so that equal inputs give equal bits. Nothing waits for the host, and
    nothing is
    compiled anew as the cache fills: the call can be captured in a CUDA graph and replayed.

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
        scale, window, softcap, sinks, return_lse: as for ``flash_attention``.

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
    check_cache(q, k_cache, v_cache, cache_seqlens, page_table)
    check_options(q, scale, softcap, sinks, 0.0)
    new = check_new(q, k_cache, k_new, v_new)
    tensors = (q, k_cache, v_cache, k_new, v_new, sinks)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise ValueError(
            "flash_decode has no gradient: call it under torch.no_grad(), or use flash_attention"
        )
    left, right = window_bounds(causal, window)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if scale < 0:
        q, scale = -q, -scale
    triton = use_triton(q, k_cache, v_cache)
    if new:
        append = append_op if triton else reference.append_to_cache
        append(k_cache, v_cache, k_new, v_new, cache_seqlens, page_table)
    arguments = (q, k_cache, v_cache, cache_seqlens, page_table, sinks, new, scale, left, right, softcap)
    out, lse = decode_op(*arguments) if triton else reference.decode(*arguments)
    return (out, lse) if return_lse else out


def check_cache(q, k_cache, v_cache, cache_seqlens, page_table):
    for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        if x.dim() != 4 or x.dtype != q.dtype or x.device != q.device or not x.is_floating_point():
            raise ValueError(
                f"{name} has four dimensions and q's floating dtype and device, {q.dtype} on {q.device};"
                f" got {tuple(x.shape)} {x.dtype} on {x.device}"
            )
    B, H, _, D = q.shape
    if k_cache.shape != v_cache.shape or k_cache.shape[-1] != D or H % max(k_cache.shape[1], 1):
        raise ValueError(
            "caches are (entries or pages, K, rows, D) with q's D and K dividing its heads;"
            f" got q {tuple(q.shape)}, k_cache {tuple(k_cache.shape)}, v_cache {tuple(v_cache.shape)}"
        )
    if not 8 <= D <= 256 or D % 8:
        raise ValueError(f"the head width D is a multiple of 8 from 8 to 256; got {D}")
    if page_table is None and k_cache.shape[0] != B:
        raise ValueError(f"q has the batch {B}, the cache {k_cache.shape[0]}; pages need a page_table")
    for name, x, shape in (("cache_seqlens", cache_seqlens, (B,)), ("page_table", page_table, None)):
        if x is None and name == "page_table":
            continue
        fits = x.shape == shape if shape else x.dim() == 2 and x.shape[0] == B
        if x.dtype != torch.int32 or x.device != q.device or not fits:
            raise ValueError(
                f"{name} is int32 of shape {shape or (B, 'pages of an entry')} on {q.device};"
                f" got {x.dtype} {tuple(x.shape)} on {x.device}"
            )


def check_new(q, k_cache, k_new, v_new):
    """How many rows are appended to each entry."""
    if k_new is None and v_new is None:
        return 0
    expected = (q.shape[0], k_cache.shape[1], q.shape[-1])
    for name, x in (("k_new", k_new), ("v_new", v_new)):
        if (
            x is None
            or x.dim() != 4
            or (x.shape[0], x.shape[1], x.shape[3]) != expected
            or x.dtype != q.dtype
        ):
            raise ValueError(
                f"{name} is (B, K, new rows, D) = {(*expected[:2], 'new rows', expected[2])} of {q.dtype};"
                f" got {None if x is None else (tuple(x.shape), x.dtype)}"
            )
    if k_new.shape != v_new.shape:
        raise ValueError(
            f"k_new and v_new have the same shape; got {tuple(k_new.shape)} and {tuple(v_new.shape)}"
        )
    return k_new.shape[2]


def check_addressable(name, cache):
    """A cache is never copied: it may be large, and appending writes to it."""
    if addressable(cache) is not cache:
        raise ValueError(
            f"{name} has D innermost and its other strides in multiples of 8, from a 16-byte boundary on;"
            f" got strides {cache.stride()}"
        )


def page_arguments(cache, page_table):
    if page_table is None:
        return {"page_table": None, "pages_per_entry": 0, "PAGE": 0, "T": cache.shape[2]}
    pages, size = page_table.shape[1], cache.shape[2]
    return {"page_table": page_table.contiguous(), "pages_per_entry": pages, "PAGE": size, "T": pages * size}


def run_append(k_cache, v_cache, k_new, v_new, cache_seqlens, page_table):
    check_addressable("k_cache", k_cache)
    check_addressable("v_cache", v_cache)
    k_new, v_new = addressable(k_new), addressable(v_new)
    B, K, new, D = k_new.shape
    block = min(16, 1 << (new - 1).bit_length())
    run(
        append_kernel,
        (cdiv(new, block), K, B),
        k_new,
        **matrices(k=k_cache, v=v_cache, k_new=k_new, v_new=v_new),
        **page_arguments(k_cache, page_table),
        lengths=cache_seqlens,
        new=new,
        D=D,
        BLOCK_M=block,
        BLOCK_D=padded_width(D),
        num_warps=4,
    )


def allocate_decode(q, k_cache, v_cache, cache_seqlens, page_table, sinks, new, scale, left, right, softcap):
    return empty_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def run_decode(q, k_cache, v_cache, cache_seqlens, page_table, sinks, new, scale, left, right, softcap):
    """``cache_seqlens`` may be None: every entry is full."""
    check_addressable("k_cache", k_cache)
    check_addressable("v_cache", v_cache)
    out, lse = allocate_decode(
        q, k_cache, v_cache, cache_seqlens, page_table, sinks, new, scale, left, right, softcap
    )
    q = addressable(q)
    B, H, S, D = q.shape
    K = k_cache.shape[1]
    device = Device.of(q.device)
    rows = S * (H // K)
    tile = decode_tile(device, D, q.element_size(), rows)
    pages = page_arguments(k_cache, page_table)
    splits = decode_splits(device, cdiv(rows, tile.block_m) * K * B, pages["T"])
    part, part_lse = out, lse
    if splits > 1:
        part = q.new_empty((splits, B, H, S, D), dtype=torch.float32)
        part_lse = lse.new_empty((splits, B, H, S))
    run(
        decode_kernel,
        (cdiv(rows, tile.block_m) * splits, K, B),
        q,
        **matrices(q=q, k=k_cache, v=v_cache, part=part if splits == 1 else part[0]),
        **pages,
        **scalar_arguments(scale, left, right, softcap),
        part_lse=part_lse,
        lengths=cache_seqlens,
        sinks=sinks,
        rows_in_all=B * H * S,
        heads=H,
        S=S,
        new=new,
        splits=splits,
        GROUP=H // K,
        D=D,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=padded_width(D),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        run(
            combine_kernel,
            (B * H * S,),
            q,
            **matrices(out=out),
            part=part,
            part_lse=part_lse,
            lse=lse,
            rows_in_all=B * H * S,
            heads=H,
            S=S,
            splits=splits,
            D=D,
            BLOCK_N=16,
            BLOCK_D=padded_width(D),
            num_warps=2,
        )
    return out, lse


decode_op = define(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? cache_seqlens, Tensor? page_table, "
    "Tensor? sinks, int new, float scale, int? left, int? right, float? softcap) -> (Tensor, Tensor)",
    run_decode,
    allocate_decode,
)


@torch.library.custom_op("llmfast::attention_append", mutates_args=("k_cache", "v_cache"))
def append_op(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor | None,
) -> None:
    run_append(k_cache, v_cache, k_new, v_new, cache_seqlens, page_table)


@append_op.register_fake
def _(k_cache, v_cache, k_new, v_new, cache_seqlens, page_table):
    return None
