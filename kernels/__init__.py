"""Triton kernels for training language models, each beside its plain PyTorch definition."""

from .activation import geglu, gelu, swiglu
from .attention import (
    attention_weights,
    flash_attention,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    flash_decode,
    sdpa,
)
from .backend import backend
from .cross_entropy import cross_entropy
from .linear_cross_entropy import linear_cross_entropy
from .linear_kl_divergence import linear_kl_divergence
from .newton_schulz import newton_schulz
from .norm import layer_norm, rms_norm
from .rope import rope

__all__ = [
    "attention_weights",
    "backend",
    "cross_entropy",
    "flash_attention",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "flash_decode",
    "geglu",
    "gelu",
    "layer_norm",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "newton_schulz",
    "rms_norm",
    "rope",
    "sdpa",
    "swiglu",
]
