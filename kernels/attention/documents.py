"""Causal or windowed attention within documents laid end to end, on a CPU: one call of PyTorch's fused kernel each.

The definition masks the scores of all tokens with all others, N² of them; this computes a document's own only.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.operator import define
from .reference import SHORT, visible

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def documents(cu_seqlens: Tensor) -> list[slice]:
    """Where each document lies that holds a token."""
    bounds = cu_seqlens.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def as_batch(x: Tensor, here: slice, heads: int) -> Tensor:
    """(N, K, D) -> (1, H, n, D): the rows ``here``, in float32 where that is the faster, keys' heads repeated."""
    rows = x[here].transpose(0, 1)[None]
    if rows.shape[2] <= SHORT and rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return rows if rows.shape[1] == heads else rows.repeat_interleave(heads // rows.shape[1], dim=1)


def bounds_of(q: Tensor, left: int | None, right: int | None) -> tuple[bool, Tensor | None]:
    """The bounds as the fused kernel takes them: (is_causal, mask)."""
    if right == 0 and left is None:
        return True, None
    if left is None and right is None:
        return False, None
    S = q.shape[2]
    seen = visible(S, S, left, right, q.device)
    return False, q.new_zeros(S, S).masked_fill_(~seen, float("-inf"))


class DocumentsCall(NamedTuple):
    q: Tensor  # (N, H, D)
    k: Tensor  # (N, K, D)
    v: Tensor  # as k
    cu_seqlens: Tensor  # int32 (documents + 1,)
    scale: float
    left: int | None
    right: int | None

    def allocate(self) -> tuple[Tensor, Tensor]:
        q = self.q
        lse = q.new_empty(q.shape[1::-1], dtype=torch.promote_types(q.dtype, torch.float32))
        return torch.empty_like(q, memory_format=torch.contiguous_format), lse


class DocumentsKept(NamedTuple):
    out: Tensor
    lse: Tensor
    call: DocumentsCall

    @staticmethod
    def fields(call: DocumentsCall, out: Tensor, lse: Tensor) -> tuple:
        return out, lse, call


class DocumentsBackwardCall(NamedTuple):
    d_out: Tensor
    kept: DocumentsKept

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = self.kept.call
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        return dq, dk, dv


def forward(call: DocumentsCall) -> tuple[Tensor, Tensor]:
    """out (N, H, D) and lse (H, N); tokens after the last document are 0."""
    q, k, v, cu_seqlens, scale, left, right = call
    out, lse = (x.zero_() for x in call.allocate())
    for here in documents(cu_seqlens):
        rows = [as_batch(x, here, q.shape[1]) for x in (q, k, v)]
        is_causal, mask = bounds_of(rows[0], left, right)
        mixed, denominators = _forward(*rows, 0.0, is_causal, attn_mask=mask, scale=scale)
        out[here], lse[:, here] = mixed[0].transpose(0, 1), denominators[0]
    return out, lse


def backward(call: DocumentsBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    d_out, (out, lse, (q, k, v, cu_seqlens, scale, left, right)) = call
    gradients = tuple(x.zero_() for x in call.allocate())
    for here in documents(cu_seqlens):
        d_rows, *rows, mixed = (as_batch(x, here, q.shape[1]) for x in (d_out, q, k, v, out))
        is_causal, mask = bounds_of(rows[0], left, right)
        denominators = lse[None, :, here]
        found = _backward(d_rows, *rows, mixed, denominators, 0.0, is_causal, attn_mask=mask, scale=scale)
        for gradient, part in zip(gradients, found, strict=True):
            by_head = part[0].unflatten(0, (gradient.shape[1], -1)).sum(1)  # Repeated heads share their key.
            gradient[here] = by_head.transpose(0, 1)
    return gradients


_backward_op = define("documents_attention_backward", DocumentsBackwardCall, backward)


def _differentiate(kept: DocumentsKept, wanted, d_out: Tensor, _) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_op(d_out, kept)


documents_op = define(
    "documents_attention",
    DocumentsCall,
    forward,
    keeps=DocumentsKept,
    backward=_differentiate,
    auxiliary=1,
)
