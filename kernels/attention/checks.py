"""What the attention functions accept: a ValueError names the argument, what it got, and what is wanted.

Kernels read vectors (boundaries, lengths, sinks) element after element, so the checks return them contiguous."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.checks import on_one_device
from ..frame.launch import MaybeTensor, contiguous

FARTHEST = 2**30  # places of queries and keys, and twice as many, fit into 32 bits
LARGEST_CAP = 10_000  # The kernels' tanh is wrong by 2^-24 of the cap, however small the score.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def window_bounds(causal, window):
    """(left, right) with ``None`` for no bound, from the public ``causal`` and ``window``.

    A bound beyond any length is none: kernels add it to positions in 32 bits.
    """
    if window is None:
        return None, 0 if causal else None
    left, right = (bound if 0 <= bound < FARTHEST else None for bound in as_window("window", window))
    return left, 0 if causal else right


def as_window(name, window):
    """(left, right) as two integers, -1 for no bound, from any sequence of two, or None for no bounds."""
    if window is None:
        return -1, -1
    try:
        left, right = map(operator.index, window)
    except (TypeError, ValueError):
        left = right = -2
    if left < -1 or right < -1:
        raise ValueError(f"{name} is two integers (left, right), each at least 0, or -1 for no bound; got {window}")
    return left, right


def widened(q, k, v, scale):
    """Filled up with zeros, which change no product, to one width that the kernels take; and the scale of the width
    that q has."""
    width = q.shape[-1]
    common = -(-max(width, v.shape[-1], 1) // 8) * 8
    q, k, v = (F.pad(x, (0, common - x.shape[-1])) for x in (q, k, v))
    return q, k, v, max(width, 1) ** -0.5 if scale is None else float(scale)


def check_qkv(q, k, v, packed=False):
    # Each question to a tensor takes the host a tenth of a microsecond or more: every one is asked once.
    dimensions, dtype, q_shape, k_shape = 3 if packed else 4, q.dtype, q.shape, k.shape
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != dimensions:
            layout = "(tokens, heads, D)" if packed else "(batch, heads, length, D)"
            hint = "" if packed or x.dim() != 3 else "; packed sequences need cu_seqlens_q"
            raise ValueError(f"{name} has the shape {tuple(x.shape)}, not {layout}{hint}")
        if x is not q and (x.dtype != dtype or not on_one_device(x, q)):
            raise ValueError(f"{name} is {x.dtype} on {x.device} but q is {dtype} on {q.device}")
    if dtype not in DTYPES:
        raise ValueError(f"q, k and v are of a floating dtype, 16 bits or more; got {dtype}")
    if k_shape != v.shape:
        raise ValueError(f"k and v have the same shape; got {tuple(k_shape)} and {tuple(v.shape)}")
    width = q_shape[-1]
    if k_shape[-1] != width or (not packed and k_shape[0] != q_shape[0]):
        raise ValueError(f"q {tuple(q_shape)} and k {tuple(k_shape)} differ in {'D' if packed else 'batch or D'}")
    if not 8 <= width <= 256 or width % 8:
        raise ValueError(f"the head width D is from 1 to 256; got {width}")
    heads, kv_heads = q_shape[1], k_shape[1]  # in both layouts
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query heads are a multiple of key/value heads; got {heads} and {kv_heads}")


def check_cu_seqlens(q, k, cu_seqlens_q, cu_seqlens_k):
    """Returns both, ``cu_seqlens_k`` filled in."""
    if cu_seqlens_q is None:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k is given without cu_seqlens_q")
        return None, None
    if cu_seqlens_k is None:
        if q.shape[0] != k.shape[0]:
            raise ValueError(f"cu_seqlens_k is needed: q has {q.shape[0]} tokens, k has {k.shape[0]}")
        cu_seqlens_k = cu_seqlens_q = cu_seqlens_q.contiguous()
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu.dtype != torch.int32 or cu.dim() != 1 or cu.numel() < 2 or cu.device != q.device:
            raise ValueError(
                f"{name} is a vector of sequences + 1 int32 on {q.device};"
                f" got {cu.dtype} of shape {tuple(cu.shape)} on {cu.device}"
            )
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k bound equally many sequences;"
            f" got {cu_seqlens_q.numel() - 1} and {cu_seqlens_k.numel() - 1}"
        )
    return cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()


def check_options(q, scale, softcap, sinks, dropout_p):
    """Returns ``sinks``."""
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is finite; got {scale}")
    if softcap is not None and not 0 < softcap <= LARGEST_CAP:
        raise ValueError(f"softcap is positive, {LARGEST_CAP:,} at most (None for no cap); got {softcap}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p lies in [0, 1); got {dropout_p}")
    if sinks is not None:
        heads = q.shape[1]  # Both layouts, (B, H, S, D) and (N, H, D), have the heads second.
        if sinks.shape != (heads,) or sinks.device != q.device or not sinks.is_floating_point():
            raise ValueError(
                f"sinks is one number a query head, ({heads},) on {q.device};"
                f" got {sinks.dtype} of shape {tuple(sinks.shape)} on {sinks.device}"
            )
    return contiguous(sinks)


def check_per_sequence(name: str, x: MaybeTensor, sequences: int, q: Tensor) -> MaybeTensor:
    """Of integers, one for each sequence."""
    if x is not None and (x.shape != (sequences,) or x.dtype != torch.int32 or x.device != q.device):
        raise ValueError(
            f"{name} is one int32 a sequence, ({sequences},) on {q.device};"
            f" got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )
    return contiguous(x)


def slopes_by_sequence(slopes, q, sequences):
    """ALiBi's slopes as float32 (float64 beside float64) of shape (sequences, H), after they were found sound."""
    if slopes is None:
        return None
    heads = q.shape[1]  # in both layouts
    if slopes.shape not in ((heads,), (sequences, heads)) or not slopes.is_floating_point():
        raise ValueError(
            f"alibi_slopes is one number a query head, ({heads},) or ({sequences}, {heads});"
            f" got {slopes.dtype} of shape {tuple(slopes.shape)}"
        )
    if slopes.device != q.device:
        raise ValueError(f"alibi_slopes is on {slopes.device} but q is on {q.device}")
    if slopes.requires_grad:
        raise ValueError("alibi_slopes gets no gradient: detach it")
    dtype = torch.promote_types(q.dtype, torch.float32)
    return slopes.to(dtype).expand(sequences, heads).contiguous()


def check_cache(q, k_cache, v_cache, page_table):
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
    if page_table is not None and (
        page_table.dtype != torch.int32
        or page_table.device != q.device
        or page_table.dim() != 2
        or page_table.shape[0] != B
    ):
        raise ValueError(
            f"page_table is int32 of shape {(B, 'pages of an entry')} on {q.device};"
            f" got {page_table.dtype} {tuple(page_table.shape)} on {page_table.device}"
        )


def check_new(q, k_cache, k_new, v_new):
    """How many rows are appended to each entry."""
    if k_new is None and v_new is None:
        return 0
    expected = (q.shape[0], k_cache.shape[1], q.shape[-1])
    for name, x in (("k_new", k_new), ("v_new", v_new)):
        if x is None or x.dim() != 4 or (x.shape[0], x.shape[1], x.shape[3]) != expected or x.dtype != q.dtype:
            raise ValueError(
                f"{name} is (B, K, new rows, D) = {(*expected[:2], 'new rows', expected[2])} of {q.dtype};"
                f" got {None if x is None else (tuple(x.shape), x.dtype)}"
            )
    if k_new.shape != v_new.shape:
        raise ValueError(f"k_new and v_new have the same shape; got {tuple(k_new.shape)} and {tuple(v_new.shape)}")
    return k_new.shape[2]
