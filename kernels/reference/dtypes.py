"""The dtype a definition computes in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """``x`` in the dtype that the definitions compute in: float64 stays, every other becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
