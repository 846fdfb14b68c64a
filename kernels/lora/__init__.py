"""Low-rank adapters on frozen weights: one layer, and a whole feed-forward layer.

To be read in this order: ``api`` (what is computed), ``ops`` (the operators). The kernels and the definitions are
those of ``nf4`` and ``activation``.
"""

from .api import Adapted as Adapted
from .api import lora_linear as lora_linear
from .api import lora_mlp as lora_mlp
from .api import swiglu_linear as swiglu_linear
