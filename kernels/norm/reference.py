"""Root mean square and layer normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import cast, widen
from ..frame.fixed_order import tree_sum
from ..frame.invariance import is_batch_invariant


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    h = x if residual is None else x + residual
    if is_batch_invariant():
        weight = None if weight is None else weight.double() + weight_offset
        y = cast(_invariant(h.double(), weight, None, eps), h.dtype)
        return y if residual is None else (y, h)
    wide = widen(h)
    if weight is not None:
        weight = cast(weight, wide.dtype)
        weight = weight + weight_offset if weight_offset else weight
    if weight is None or weight.dim() == 1:
        y = torch.rms_norm(wide, wide.shape[-1:], weight, eps)
    else:
        y = torch.rms_norm(wide, wide.shape[-1:], None, eps) * weight
    y = cast(y, h.dtype)
    return y if residual is None else (y, h)


def _mean(x: Tensor) -> Tensor:
    return tree_sum(x).unsqueeze(-1) / x.shape[-1]


def _invariant(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight + bias`` in float64, each row's sum in a fixed order."""
    y = x / (_mean(x * x) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    h = x if residual is None else x + residual
    if is_batch_invariant():
        wide = h.double()
        centered = wide - _mean(wide)
        weight, bias = (None if p is None else p.double() for p in (weight, bias))
        y = cast(_invariant(centered, weight, bias, eps), h.dtype)
        return y if residual is None else (y, h)
    wide = widen(h)
    weight = None if weight is None else cast(weight, wide.dtype)
    bias = None if bias is None else cast(bias, wide.dtype)
    per_head = (weight is not None and weight.dim() == 2) or (bias is not None and bias.dim() == 2)
    if not per_head:
        y = F.layer_norm(wide, wide.shape[-1:], weight, bias, eps)
    else:
        y = F.layer_norm(wide, wide.shape[-1:], None, None, eps)
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
    y = cast(y, h.dtype)
    return y if residual is None else (y, h)
