"""flash_attention under the names that other code calls: Dao's flash-attn, and PyTorch's SDPA.

Of flash-attn's arguments, ``deterministic`` and ``num_splits`` change nothing: the backward pass is always
deterministic, and the splits follow from the chip.
"""

import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.autocast import autocast
from ..rope.api import rope
from .api import attend, flash_attention
from .checks import as_window
from .decode import flash_decode

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """``flash_attn.flash_attn_func``: q (B, S, H, D), k and v (B, T, K, D).

    Returns (B, S, H, D), or with ``return_attn_probs`` ``(out, softmax_lse (B, H, S), None)``: the matrix of
    probabilities that flash-attn returns for its own tests is not formed; see ``attention_weights``.

    >>> import torch
    >>> flash_attn_func(*torch.randn(3, 2, 10, 4, 64), causal=True).shape
    torch.Size([2, 10, 4, 64])
    """
    result = flash_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        **dao_options(dropout_p, softmax_scale, causal, window_size, softcap),
        alibi_slopes=alibi_slopes,
        return_lse=return_attn_probs,
    )
    if isinstance(result, tuple):
        return result[0].transpose(1, 2), result[1], None
    return result.transpose(1, 2)


def flash_attn_qkvpacked_func(qkv: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor, None]:
    """``flash_attn.flash_attn_qkvpacked_func``: qkv (B, S, 3, H, D); the rest as ``flash_attn_func``."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_kvpacked_func(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor, None]:
    """``flash_attn.flash_attn_kvpacked_func``: kv (B, T, 2, K, D); the rest as ``flash_attn_func``."""
    k, v = kv.unbind(2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """``flash_attn.flash_attn_varlen_func``: q (N, H, D), k and v (N_k, K, D), packed.

    With ``block_table`` (sequences, pages of a sequence) k and v are (pages, page size, K, D), and ``cu_seqlens_k``
    gives the lengths of sequences; one that is longer than its pages ends with them. Pages are copied to where
    attention reads them; k and v get no gradient.
    ``seqused_q``, ``seqused_k`` and ``leftpad_k`` are those of ``flash_attention``.

    Returns (N, H, D), or with ``return_attn_probs`` ``(out, softmax_lse (H, N), None)``.
    """
    if block_table is not None:
        k, v, cu_seqlens_k, seqused_k = packed_pages(k, v, cu_seqlens_k, seqused_k, block_table)
    result = flash_attention(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        **dao_options(dropout_p, softmax_scale, causal, window_size, softcap),
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        leftpad_k=leftpad_k,
        alibi_slopes=alibi_slopes,
        return_lse=return_attn_probs,
    )
    return (result[0], result[1].transpose(0, 1), None) if isinstance(result, tuple) else result


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``flash_attn.flash_attn_with_kvcache``: q (B, S, H, D); caches (B, T, K, D), or (pages, page size, K,
    D) with ``block_table``; k and v (B, S_new, K, D) are rotated by ``rotary_cos`` and ``rotary_sin``,
    appended in place and attended to. No gradient. Positions of ``rotary_cos`` count from ``cache_leftpad`` on, which,
    as there, is refused together with ``block_table``."""
    if cache_leftpad is not None and block_table is not None:
        raise ValueError("cache_leftpad is of contiguous caches: with block_table, leave pages of padding out")
    if cache_seqlens is None:
        if k is not None:
            raise ValueError("cache_seqlens is needed where k and v are appended")
        cache_seqlens = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    if not isinstance(cache_seqlens, Tensor):
        cache_seqlens = torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)
    if rotary_cos is not None:
        if k is None:
            raise ValueError("rotary_cos rotates new keys and their queries: k and v are needed")
        has_positions = causal or as_window("window_size", window_size) != (-1, -1)
        row = torch.arange(q.shape[1], device=q.device) if has_positions else 0
        filled = cache_seqlens if cache_leftpad is None else cache_seqlens - cache_leftpad
        q_position = (filled.long()[:, None] + row).expand(q.shape[:2])
        k_position = filled.long()[:, None] + torch.arange(k.shape[1], device=q.device)
        q = rotated(q, q_position, rotary_cos, rotary_sin, rotary_interleaved)
        k = rotated(k, k_position, rotary_cos, rotary_sin, rotary_interleaved)
    if cache_batch_idx is not None:  # An entry is one page as long as the cache.
        if block_table is not None:
            raise ValueError("cache_batch_idx and block_table both say where an entry lies: give one")
        block_table = cache_batch_idx.to(torch.int32)[:, None]
    options = dao_options(0.0, softmax_scale, causal, window_size, softcap)
    del options["dropout_p"]
    out, lse = flash_decode(
        q.transpose(1, 2),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        cache_seqlens,
        k_new=None if k is None else k.transpose(1, 2),
        v_new=None if v is None else v.transpose(1, 2),
        page_table=block_table,
        alibi_slopes=alibi_slopes,
        leftpad=cache_leftpad,
        **options,
        return_lse=True,
    )
    return (out.transpose(1, 2), lse) if return_softmax_lse else out.transpose(1, 2)


def rotated(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor | None, interleaved: bool) -> Tensor:
    turned = rope(x, positions=positions, cos=cos, sin=sin, interleaved=interleaved)
    assert isinstance(turned, Tensor)
    return turned


def dao_options(
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> dict[str, Any]:
    return {
        "dropout_p": dropout_p,
        "scale": softmax_scale,
        "causal": causal,
        "window": as_window("window_size", window_size),
        "softcap": softcap or None,
    }


def packed_pages(
    k: Tensor, v: Tensor, cu_seqlens_k: Tensor, seqused_k: Tensor | None, block_table: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pages laid end to end, each sequence's as many as its row of the table has: (k, v, cu_seqlens_k, seqused_k)."""
    if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
        raise ValueError("block_table has no gradient for k and v: detach them, or give packed k and v")
    if k.dim() != 4 or v.dim() != 4 or block_table.dim() != 2 or block_table.dtype != torch.int32:
        raise ValueError(
            "block_table is int32 (sequences, pages of a sequence), with k and v (pages, page size, K, D); got "
            f"{block_table.dtype} {tuple(block_table.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"
        )
    pages = block_table.long().clamp(0, k.shape[0] - 1)  # Entries past a sequence's end may be anything.
    rows = block_table.shape[1] * k.shape[1]
    starts = torch.arange(len(block_table) + 1, device=k.device, dtype=torch.int32) * rows
    used = cu_seqlens_k.diff() if seqused_k is None else torch.minimum(seqused_k, cu_seqlens_k.diff())
    return k[pages].flatten(0, 2), v[pages].flatten(0, 2), starts, used


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: "Tensor | CausalBias | None" = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, by flash_attention wherever that computes the
    same.

    ``is_causal`` is aligned top-left, as there; ``torch.nn.attention.bias.causal_upper_left`` and
    ``causal_lower_right`` are understood. Any other ``attn_mask``, and shapes that flash_attention does not
    take, go to PyTorch's function; one warning a reason says so.

    >>> import torch
    >>> sdpa(*torch.randn(3, 2, 4, 10, 64), is_causal=True).shape
    torch.Size([2, 4, 10, 64])
    """
    right = None
    bias = causal_bias(attn_mask)
    if is_causal or bias == "upper left":
        right = query.shape[-2] - key.shape[-2]
    elif bias == "lower right":
        right = 0
    reason = inexpressible(query, key, value, None if bias else attn_mask, dropout_p, enable_gqa)
    if is_causal and attn_mask is not None:
        reason = "is_causal with an attn_mask"  # PyTorch says what is wrong with that.
    if reason:
        if reason not in _said:
            _said.add(reason)
            warnings.warn(f"llmfast.kernels.sdpa leaves this to PyTorch: {reason}", stacklevel=2)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    query, key, value = autocast(query, key, value)
    out = attend(query, key, value, left=None, right=right, scale=scale, dropout_p=dropout_p)
    assert isinstance(out, Tensor)
    return out


_said: set[str] = set()


def causal_bias(attn_mask: "Tensor | CausalBias | None") -> str | None:
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(attn_mask, CausalBias):
        return None
    return "upper left" if attn_mask.variant == CausalVariant.UPPER_LEFT else "lower right"


def inexpressible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    enable_gqa: bool,
) -> str:
    """Why flash_attention cannot compute this; empty where it can."""
    if attn_mask is not None:
        return "an attn_mask tensor"
    if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(query.device.type):
        return "queries, keys and values of different dtypes"
    if query.dim() != 4 or key.dim() != 4 or key.shape != value.shape:
        return "not (B, H, S, D), or values of another width than the keys"
    D, heads, kv_heads = query.shape[-1], query.shape[1], key.shape[1]
    if not 8 <= D <= 256 or D % 8 or key.shape[-1] != D:
        return f"the head width {D}"
    if query.shape[0] != key.shape[0] or (heads != kv_heads and (not enable_gqa or heads % max(kv_heads, 1))):
        return "batches or heads that need broadcasting"
    if not 0 <= dropout_p < 1:
        return f"dropout_p={dropout_p}"
    return ""
