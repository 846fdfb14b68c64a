"""Rotary position embedding.

To be read in this order: ``api`` (what is computed), ``reference`` (its definition in PyTorch), ``kernels`` (Triton),
``launch`` (tiles and warps), ``ops`` (the operators), ``compile_cases`` (what is compiled for every chip).
"""

from .api import rope as rope
