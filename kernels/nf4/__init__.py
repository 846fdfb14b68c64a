"""4-bit weights: quantizing, decoding, and the linear layer on them, with low-rank adapters."""

from .dequantize import dequantize_nf4 as dequantize_nf4
from .interchange import from_bitsandbytes as from_bitsandbytes
from .interchange import from_bitsandbytes_state as from_bitsandbytes_state
from .interchange import to_bitsandbytes as to_bitsandbytes
from .interchange import to_bitsandbytes_state as to_bitsandbytes_state
from .linear import nf4_linear as nf4_linear
from .module import NF4Linear as NF4Linear
from .tensor import NF4Tensor as NF4Tensor
from .tensor import quantize_nf4 as quantize_nf4
