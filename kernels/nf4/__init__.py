"""4-bit weights: quantising, decoding, and the linear layer on them, with low-rank adapters."""

from .dequantize import dequantize_nf4
from .linear import nf4_linear
from .tensor import NF4Tensor, quantize_nf4

__all__ = ["NF4Tensor", "dequantize_nf4", "nf4_linear", "quantize_nf4"]
