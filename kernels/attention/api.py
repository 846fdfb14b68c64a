"""The public attention function and what it accepts."""

import math

import torch
from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import is_transformed, use_triton
from ..frame.checks import as_integer
from ..frame.invariance import is_batch_invariant
from . import reference
from .block_mask import BlockMask, check_block_mask, lists_of, tensor_of
from .checks import (
    check_cu_seqlens,
    check_options,
    check_per_sequence,
    check_qkv,
    slopes_by_sequence,
    widened,
    window_bounds,
)
from .documents import documents_op
from .ops import attention_op


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_mask: Tensor | BlockMask | None = None,
    block_size: int = 128,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Exact attention in memory proportional to S + T; gradients for q, k, v, sinks and through the lse.

    .. math::
        s_{ij} = c \tanh(\mathrm{scale} \; q_i \cdot k_j / c) \qquad
        p_{ij} = e^{s_{ij}} / (e^{\mathrm{sink}} + \textstyle\sum_{j'} e^{s_{ij'}}) \qquad
        o_i = \textstyle\sum_j p_{ij} v_j

    over the keys j that query i sees (without ``softcap`` c, s is the plain scaled product; without ``sinks``
    their term is absent). Method: FlashAttention-2 (Dao 2023, algorithms 1 and 2) with online softmax
    (Milakov and Gimelshein 2018). The backward pass is deterministic: each dQ, dK and dV tile belongs to one
    program.

    Scores that a function computes, other than ALiBi's, and masks by rule, other than blocks, are out of scope: for
    those, ``torch.nn.attention.flex_attention``.

    Args:
        q: (B, H, S, D), any strides, so ``x.view(B, S, H, D).transpose(1, 2)`` costs no copy; or (N, H, D)
            with ``cu_seqlens``. D is at most 256; where it is no multiple of 8, q, k and v are copied. float16,
            bfloat16 or float32 (and float64 on a CPU). Under autocast q, k and v are cast as for PyTorch's attention.
        k, v: (B, K, T, D) or (N_k, K, D). v may be of another width, which the result then has, too. K divides H:
            query heads ``h`` of group ``h // (H // K)`` share a key head.
        causal: Query i sees keys up to i + T - S: the last query stands at the last key (bottom-right
            alignment).
        scale: Factor on the products; 1/sqrt(D) if left out.
        window: (left, right): a query at position p sees keys p - left ... p + right, -1 for no bound.
            Positions are aligned as under ``causal``, which further limits ``right`` to 0.
        softcap: Positive c as above, 10,000 at most (Gemma 2, section 2).
        sinks: (H,), one learnable logit a head that joins the denominator and no value (gpt-oss).
        dropout_p: Probability in [0, 1) of dropping an element of p; those kept are divided by 1 - dropout_p.
        seed: Integer, or an int64 tensor of one element on q's device, for dropout: same seed, same mask, on
            every device, packed or padded. Drawn from PyTorch's generator if left out.
        cu_seqlens_q, cu_seqlens_k: (sequences + 1,) int32: where each packed sequence starts, the last entry
            the end. ``cu_seqlens_k`` defaults to ``cu_seqlens_q``. Sequences may be empty. Tokens after the
            end give 0.
        max_seqlen_q, max_seqlen_k: Accepted because other libraries need them; nothing depends on them.
        seqused_q, seqused_k: (sequences,) int32, with ``cu_seqlens_q``: how many of a sequence's first tokens count.
            Others see nothing (out 0, lse -inf), and nobody sees them.
        leftpad_k: (sequences,) int32, with ``cu_seqlens_q``: how many of a sequence's first keys are padding, which
            nobody sees; among those that ``seqused_k`` counts.
        alibi_slopes: (H,), or (B, H) or (sequences, H): slope · |distance of positions| is subtracted from each score,
            after ``softcap`` (ALiBi: Press et al. 2022, arXiv:2108.12409). They get no gradient.
        block_mask: (B or 1, H or 1, ceil(S / block_size), ceil(T / block_size)) bool: False hides a block of keys from
            a block of queries, in addition to the other options. No pass computes products of hidden blocks
            (block-sparse FlashAttention: Dao et al. 2022, arXiv:2205.14135, section 3.3). Not with ``cu_seqlens_q``.
            A ``BlockMask`` is such a mask, prepared for many calls.
        block_size: Queries and keys of a block, a multiple of 128; a ``BlockMask`` has its own.
        return_lse: Also return the log of the softmax denominator.

    Returns:
        ``out`` like q, or ``(out, lse)`` with lse of q's shape without D, in float32 (float64 for float64
        inputs). A query that sees no key gives 0 and lse -inf (the sink, where there are sinks).

    Raises:
        ValueError: for shapes, dtypes, devices or options outside the above.

    >>> import torch
    >>> class SelfAttention(torch.nn.Module):
    ...     def __init__(self, width, heads):
    ...         super().__init__()
    ...         self.heads = heads
    ...         self.qkv = torch.nn.Linear(width, 3 * width)
    ...         self.out = torch.nn.Linear(width, width)
    ...
    ...     def forward(self, x):  # (B, S, E)
    ...         q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    ...         return self.out(flash_attention(q, k, v, causal=True).transpose(1, 2).flatten(2))
    >>> SelfAttention(64, 4)(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """
    q, k, v = autocast(q, k, v)
    width, value_width = q.shape[-1:], v.shape[-1:]
    fits = width == value_width and not (width and width[0] % 8)
    if not fits and width == k.shape[-1:]:
        q, k, v, scale = widened(q, k, v, scale)
    check_qkv(q, k, v, packed=cu_seqlens_q is not None)
    cu_seqlens_q, cu_seqlens_k = check_cu_seqlens(q, k, cu_seqlens_q, cu_seqlens_k)
    sinks = check_options(q, scale, softcap, sinks, dropout_p)
    if not (seqused_q is None and seqused_k is None and leftpad_k is None and alibi_slopes is None):
        sequences = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.numel() - 1
        per_sequence = {"seqused_q": seqused_q, "seqused_k": seqused_k, "leftpad_k": leftpad_k}
        for name, x in per_sequence.items():
            if x is not None and cu_seqlens_q is None:
                raise ValueError(f"{name} is of packed sequences: give cu_seqlens_q, too")
            per_sequence[name] = check_per_sequence(name, x, sequences, q)
        seqused_q, seqused_k, leftpad_k = per_sequence.values()
        alibi_slopes = slopes_by_sequence(alibi_slopes, q, sequences)
    if block_mask is not None:
        block_size = check_block_mask(block_mask, block_size, q, k, packed=cu_seqlens_q is not None)
    left, right = window_bounds(causal, window)
    result = attend(
        q,
        k,
        v,
        left=left,
        right=right,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        seed=seed,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        used_q=seqused_q,
        used_k=seqused_k,
        pad_k=leftpad_k,
        alibi=alibi_slopes,
        block_mask=block_mask,
        block_size=block_size,
        return_lse=return_lse,
    )
    if fits:
        return result
    out, *lse = result if isinstance(result, tuple) else (result,)
    out = out[..., : value_width[0]]
    return (out, *lse) if lse else out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    left: int | None,
    right: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    used_q: Tensor | None = None,
    used_k: Tensor | None = None,
    pad_k: Tensor | None = None,
    alibi: Tensor | None = None,
    block_mask: Tensor | BlockMask | None = None,
    block_size: int = 128,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``flash_attention`` after its checks, with the window as signed bounds (``None``: no bound)."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    seed = seed_tensor(seed, q.device) if dropout_p > 0 else None
    if scale < 0:  # Kernels, PyTorch's too, take the maximum before they scale.
        q, scale = -q, -scale
    if use_triton(q, k, v):
        options = (scale, left, right, softcap, dropout_p, block_size)
        packing = (cu_seqlens_q, cu_seqlens_k, used_q, used_k, pad_k)
        lists = lists_of(block_mask, q, k, v, sinks)
        out, lse = attention_op(q, k, v, sinks, alibi, seed, *packing, *lists, *options)
        if not return_lse:
            return out
        return out, lse if cu_seqlens_q is None else lse[0].transpose(0, 1)
    plain = softcap is None and sinks is None and alibi is None and dropout_p == 0
    plain = plain and used_q is None and used_k is None and pad_k is None and block_mask is None
    plain = plain and not return_lse and not is_batch_invariant()
    if plain and cu_seqlens_q is None:
        return reference.plain_attention(q, k, v, scale=scale, left=left, right=right)
    sees_itself = (left is None or left >= 0) and (right is None or right >= 0)
    in_order = plain and cu_seqlens_k is cu_seqlens_q and sees_itself
    if in_order and q.device.type == "cpu" and not is_transformed():
        return documents_op(q, k, v, cu_seqlens_q, scale, left, right)[0]
    out, lse = reference.attention(
        q,
        k,
        v,
        scale=scale,
        left=left,
        right=right,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        seed=seed,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        used_q=used_q,
        used_k=used_k,
        pad_k=pad_k,
        alibi=alibi,
        block_mask=tensor_of(block_mask),
        block_size=block_size,
    )
    return (out, lse) if return_lse else out


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as an int64 tensor, drawn or filled on the device, so that nothing waits for the host."""
    if seed is None:
        return torch.randint(2**62, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != device:
            raise ValueError(
                f"seed is an integer, or an int64 tensor of one element on {device};"
                f" got {seed.dtype} of shape {tuple(seed.shape)} on {seed.device}"
            )
        return seed.reshape(())
    if not -(2**63) <= as_integer("seed", seed) < 2**63:
        raise ValueError(f"seed is an integer of 64 bits with a sign; got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)
