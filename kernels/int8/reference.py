"""Weights in 8 bits, one scale a row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import widen
from ..frame.invariance import is_batch_invariant
from ..linear.ops import multiply


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8, scale float32 (N,)): ``codes · scale``, the largest of a row being ±127; nearest, ties to even."""
    wide = weight.float()
    scale = wide.abs().amax(1) / 127
    codes = wide / torch.where(scale > 0, scale, 1.0)[:, None]
    return codes.round().clamp(-127, 127).to(torch.int8), scale


def linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    wide = widen(x)
    weight = codes.to(wide.dtype) * scale.to(wide.dtype)[:, None]
    product = multiply if is_batch_invariant() else F.linear
    return product(wide, weight, None if bias is None else bias.to(wide.dtype)).to(x.dtype)
