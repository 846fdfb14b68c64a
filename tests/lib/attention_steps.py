"""What the attention kernels compute, step by step in PyTorch: for what its roundings allow (see ``roundings``).

The kernels' order differs from softmax(q kᵀ) v in two places. Logits are in base 2, rounded once more. And the
backward pass computes the probabilities again from the log-sum-exp, and replaces the Σ p·dp of softmax by
delta = Σ g·o, with o rounded to its dtype: where one key has all the weight, PyTorch's softmax gives an exact 0, and
dp - delta gives the roundings of two sums over D.
"""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)


def base_2_logits(q: Tensor, k: Tensor, scale: float, softcap: float | None, hidden: Tensor) -> Tensor:
    product = q @ k.transpose(-1, -2)
    if softcap is None:
        x = product * (scale * LOG2_E)
    else:
        z = product * (scale / softcap)
        t = torch.exp2(z.abs() * (-2 * LOG2_E))
        x = (softcap * LOG2_E) * z.sign() * ((1 - t) / (1 + t))
    return x.masked_fill(hidden, -math.inf)


class FlashAttention(torch.autograd.Function):
    """q, k, v (B, H, S or T, D) and sinks (H,) to (out, lse); out is stored in ``dtype``."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, hidden, scale, softcap, keep, dtype):
        x = base_2_logits(q, k, scale, softcap, hidden)
        maximum = x.amax(-1, keepdim=True)
        sink = None if sinks is None else (sinks * LOG2_E)[:, None, None]
        if sink is not None:
            maximum = torch.maximum(maximum, sink)
        base = maximum.masked_fill(maximum == -math.inf, 0.0)
        p = torch.exp2(x - base)
        denominator = p.sum(-1, keepdim=True)
        if sink is not None:
            denominator = denominator + torch.exp2(sink - base)
        blind = denominator == 0
        out = (p * keep) @ v / denominator.masked_fill(blind, 1.0)
        lse = ((base + denominator.log2()) / LOG2_E).squeeze(-1)
        ctx.save_for_backward(q, k, v, sinks, hidden, keep, out.to(dtype).double(), lse)
        ctx.options = scale, softcap
        return out, lse

    @staticmethod
    def backward(ctx, g, g_lse):
        q, k, v, sinks, hidden, keep, out, lse = ctx.saved_tensors
        scale, softcap = ctx.options
        delta = ((out * g).sum(-1) - g_lse).unsqueeze(-1)
        lse = (lse * LOG2_E).unsqueeze(-1)
        x = base_2_logits(q, k, scale, softcap, hidden)
        p = torch.exp2(x - lse.masked_fill(lse == -math.inf, math.inf))
        ds = p * ((g @ v.transpose(-1, -2)) * keep - delta)
        if softcap is not None:
            ds = ds * (1 - (x.masked_fill(hidden, 0.0) / (softcap * LOG2_E)).square())
        dq, dk = (ds @ k) * scale, (ds.transpose(-1, -2) @ q) * scale
        dv = (p * keep).transpose(-1, -2) @ g
        d_sinks = None
        if sinks is not None:
            d_sinks = -(torch.exp2((sinks * LOG2_E)[:, None, None] - lse) * delta).sum((0, 2, 3))
        return dq, dk, dv, d_sinks, None, None, None, None, None


def flash_attention_steps(q, k, v, sinks=None, *, hidden, dtype, softcap=None, scale=None, dropout_p=0.0, keep=None):
    """(out, lse) in float64 of inputs that were rounded to ``dtype``; ``hidden`` (S, T) marks the keys not seen."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keep = q.new_ones(()) if keep is None else keep.to(q.dtype) / (1 - dropout_p)
    return FlashAttention.apply(q, k, v, sinks, hidden, scale, softcap, keep, dtype)
