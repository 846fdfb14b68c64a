"""The dtype a definition computes in.

``to`` takes half a microsecond of the host where it changes nothing, and one token's pass through a small decoder calls
it some eighty times: a tenth of that pass.
"""

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the definitions compute in: float64 stays, every other becomes float32."""
    return dtype if dtype in _WIDE else torch.float32


def widen(x: Tensor) -> Tensor:
    """``x`` in the dtype that the definitions compute in."""
    return x if x.dtype in _WIDE else x.float()


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``."""
    return x if x.dtype == dtype else x.to(dtype)
