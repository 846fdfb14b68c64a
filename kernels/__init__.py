"""Triton kernels for training language models, each beside its plain PyTorch definition."""

from .activation import geglu, gelu, swiglu
from .attention import flash_attention
from .backend import backend
from .norm import layer_norm, rms_norm
from .rope import rope

__all__ = [
    "backend",
    "flash_attention",
    "geglu",
    "gelu",
    "layer_norm",
    "rms_norm",
    "rope",
    "swiglu",
]
