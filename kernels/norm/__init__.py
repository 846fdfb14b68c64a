"""Root mean square and layer normalization.

To be read in this order: ``api`` (what is computed), ``reference`` (its definition in PyTorch), ``kernels`` (Triton),
``launch`` (tiles and warps), ``ops`` (the operators), ``compile_cases`` (what is compiled for every chip).
"""

from .api import layer_norm as layer_norm
from .api import rms_norm as rms_norm
