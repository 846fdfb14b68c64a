"""Triton kernels for training language models, each beside its plain PyTorch definition."""

from .activation import geglu, gelu, swiglu
from .attention import flash_attention
from .backend import backend
from .cross_entropy import cross_entropy
from .linear_cross_entropy import linear_cross_entropy
from .norm import layer_norm, rms_norm
from .rope import rope

__all__ = [
    "backend",
    "cross_entropy",
    "flash_attention",
    "geglu",
    "gelu",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "swiglu",
]
