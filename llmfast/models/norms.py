"""The norms of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfast.kernels import layer_norm, rms_norm
from llmfast.models.config import DecoderConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, shape: int | tuple[int, ...], eps: float, weight_offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((shape,) if isinstance(shape, int) else shape, 1 - weight_offset))
        self.eps = eps
        self.weight_offset = weight_offset

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x; with a residual, of ``h = x + residual``, and h beside it."""
        return rms_norm(x, self.weight, eps=self.eps, weight_offset=self.weight_offset, residual=residual)


class LayerNorm(RMSNorm):
    """Layer norm with a learned scale and, if it has one, a bias (Ba et al. 2016)."""

    def __init__(self, shape: int | tuple[int, ...], eps: float, bias: bool = True):
        super().__init__(shape, eps)
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return layer_norm(x, self.weight, self.bias, eps=self.eps, residual=residual)


def norm(config: DecoderConfig, shape: int | tuple[int, ...]) -> RMSNorm:
    """A norm with weights of this shape, of which it normalizes the last dimension."""
    return (
        LayerNorm(shape, config.norm_eps, config.norm_bias)
        if config.norm == "layer"
        else RMSNorm(shape, config.norm_eps, config.norm_weight_offset)
    )


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x (..., D) over the root of its mean square, computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
