"""Cross entropy, and losses of a linear layer's output whose logits never exist.

To be read in this order: ``cross_entropy``, ``linear_cross_entropy`` and ``linear_kl_divergence`` (what is computed),
``reference`` (the definitions in PyTorch), the ``*_kernels`` (Triton), ``launch`` (tiles and strategies), the ``*_ops``
(the operators) with ``linear_chunks`` and ``linear_tiles`` (two ways without logits), ``compile_cases`` (what is
compiled for every chip).
"""

from .cross_entropy import cross_entropy as cross_entropy
from .linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from .linear_kl_divergence import linear_kl_divergence as linear_kl_divergence
from .vocab_parallel import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
