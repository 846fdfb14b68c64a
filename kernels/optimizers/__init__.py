"""Optimizer updates of whole lists of parameters, and the iteration of Muon.

To be read in this order: ``adamw``, ``adamw_8bit`` and ``newton_schulz`` (what is computed), the ``*_reference`` (the
definitions in PyTorch), the ``*_kernels`` (Triton), ``launch`` (tiles and warps), the ``*_ops`` (the operators),
``compile_cases`` (what is compiled for every chip).
"""

from .adamw import adamw_ as adamw_
from .adamw_8bit import adamw_8bit_ as adamw_8bit_
from .newton_schulz import newton_schulz as newton_schulz
