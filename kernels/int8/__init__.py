"""A linear layer on a frozen weight in 8 bits.

To be read in this order: ``api`` (what is computed), ``reference`` (its definition in PyTorch), ``kernels`` (Triton),
``launch`` (tiles and warps), ``ops`` (the operators), ``compile_cases`` (what is compiled for every chip).
"""

from .api import int8_linear as int8_linear
from .api import quantize_int8 as quantize_int8
