"""SwiGLU, GeGLU and GELU: the activations of the feed-forward layer, and the layer in tiles (``tiled``).

To be read in this order: ``api`` (what is computed), ``reference`` (its definition in PyTorch), ``kernels`` (Triton),
``launch`` (tiles and warps), ``ops`` (the operators), ``compile_cases`` (what is compiled for every chip).
"""

from .api import geglu as geglu
from .api import gelu as gelu
from .api import swiglu as swiglu
from .tiled import tiled_mlp as tiled_mlp
