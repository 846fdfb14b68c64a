"""The published weights of GPT-OSS: MXFP4, 4-bit floats with a power of two for each 32 of them.

The format is that of OCP Microscaling 1.0, section 5.3; numbers are in the order in which transformers has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1 by its bits; the fourth is the sign
_NUMBERS = (*_POSITIVE, *(-each for each in _POSITIVE))
_BIAS = 127  # of the exponents


def packed_names(name: str) -> tuple[str, str]:
    """The tensors that a folder has in place of ``name``."""
    return f"{name}_blocks", f"{name}_scales"


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """The matrices (X, in, out) of blocks (X, out, in/32, 16) and scales (X, out, in/32), both uint8, in float32.

    Raises:
        ValueError: other shapes or dtypes.
    """
    if {blocks.dtype, scales.dtype} != {torch.uint8} or blocks.ndim != 4 or blocks.shape[:3] != scales.shape:
        said = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in (blocks, scales))
        raise ValueError(f"blocks and scales of MXFP4 are uint8, (X, out, in/32, 16) and (X, out, in/32); got {said}")
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)  # the lower half of a byte comes first
    numbers = torch.tensor(_NUMBERS)[codes.int()]
    exponents = scales.int() - _BIAS
    return torch.ldexp(numbers, exponents[..., None]).flatten(-2).mT.contiguous()
