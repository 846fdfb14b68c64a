"""Causal or windowed attention within documents laid end to end, on a CPU: one call of PyTorch's fused kernel each.

The definition masks the scores of all tokens with all others, N² of them; this computes a document's own only.
"""

import itertools

import torch

from ..operator import define
from ..reference.attention import SHORT, visible

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def documents(cu_seqlens):
    """Where each document lies that holds a token."""
    bounds = cu_seqlens.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def as_batch(x, here, heads):
    """(N, K, D) -> (1, H, n, D): the rows ``here``, in float32 where that is the faster, keys' heads repeated."""
    rows = x[here].transpose(0, 1)[None]
    if rows.shape[2] <= SHORT and rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return rows if rows.shape[1] == heads else rows.repeat_interleave(heads // rows.shape[1], dim=1)


def bounds_of(q, left, right):
    """The bounds as the fused kernel takes them: (is_causal, mask)."""
    if right == 0 and left is None:
        return True, None
    if left is None and right is None:
        return False, None
    S = q.shape[2]
    seen = visible(S, S, left, right, q.device)
    return False, q.new_zeros(S, S).masked_fill_(~seen, float("-inf"))


def allocate(q, k, v, cu_seqlens, scale, left, right):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        q.shape[1::-1], dtype=torch.promote_types(q.dtype, torch.float32)
    )


def forward(q, k, v, cu_seqlens, scale, left, right):
    """out (N, H, D) and lse (H, N); tokens after the last document are 0."""
    out, lse = (x.zero_() for x in allocate(q, k, v, cu_seqlens, scale, left, right))
    for here in documents(cu_seqlens):
        rows = [as_batch(x, here, q.shape[1]) for x in (q, k, v)]
        is_causal, mask = bounds_of(rows[0], left, right)
        mixed, denominators = _forward(*rows, 0.0, is_causal, attn_mask=mask, scale=scale)
        out[here], lse[:, here] = mixed[0].transpose(0, 1), denominators[0]
    return out, lse


def allocate_backward(d_out, q, k, v, out, lse, cu_seqlens, scale, left, right):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def backward(d_out, q, k, v, out, lse, cu_seqlens, scale, left, right):
    gradients = [
        x.zero_() for x in allocate_backward(d_out, q, k, v, out, lse, cu_seqlens, scale, left, right)
    ]
    for here in documents(cu_seqlens):
        d_rows, *rows, mixed = (as_batch(x, here, q.shape[1]) for x in (d_out, q, k, v, out))
        is_causal, mask = bounds_of(rows[0], left, right)
        found = _backward(
            d_rows, *rows, mixed, lse[None, :, here], 0.0, is_causal, attn_mask=mask, scale=scale
        )
        for gradient, part in zip(gradients, found, strict=True):
            by_head = part[0].unflatten(0, (gradient.shape[1], -1)).sum(1)  # repeated heads share their key
            gradient[here] = by_head.transpose(0, 1)
    return tuple(gradients)


_SCHEMA = "Tensor cu_seqlens, float scale, int? left, int? right"

_backward_op = define(
    f"documents_attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
    backward,
    allocate_backward,
)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, d_out, _):
    *tensors, cu_seqlens = ctx.saved_tensors
    return *_backward_op(d_out, *tensors, cu_seqlens, *ctx.options), *(None,) * 4


documents_attention = define(
    f"documents_attention(Tensor q, Tensor k, Tensor v, {_SCHEMA}) -> (Tensor, Tensor)",
    forward,
    allocate,
    backward=_differentiate,
    save=_save,
)
