"""Triton kernels for training language models, each beside its plain PyTorch definition."""

from .activation import geglu, gelu, swiglu, tiled_mlp
from .attention import (
    BlockMask,
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
from .frame.backend import backend
from .int8 import int8_linear, quantize_int8
from .linear import batch_invariant, is_batch_invariant, linear
from .lora import Adapted, lora_linear, lora_mlp
from .losses import cross_entropy, linear_cross_entropy, linear_kl_divergence, vocab_parallel_cross_entropy
from .nf4 import (
    NF4Linear,
    NF4Tensor,
    dequantize_nf4,
    from_bitsandbytes,
    from_bitsandbytes_state,
    nf4_linear,
    quantize_nf4,
    to_bitsandbytes,
    to_bitsandbytes_state,
)
from .norm import layer_norm, rms_norm
from .optimizers import adamw_, adamw_8bit_, newton_schulz
from .rope import rope

__all__ = [
    "Adapted",
    "BlockMask",
    "NF4Linear",
    "NF4Tensor",
    "adamw_",
    "adamw_8bit_",
    "attention_weights",
    "backend",
    "batch_invariant",
    "cross_entropy",
    "dequantize_nf4",
    "flash_attention",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "flash_decode",
    "from_bitsandbytes",
    "from_bitsandbytes_state",
    "geglu",
    "gelu",
    "int8_linear",
    "is_batch_invariant",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "lora_linear",
    "lora_mlp",
    "newton_schulz",
    "nf4_linear",
    "quantize_int8",
    "quantize_nf4",
    "rms_norm",
    "rope",
    "sdpa",
    "swiglu",
    "tiled_mlp",
    "to_bitsandbytes",
    "to_bitsandbytes_state",
    "vocab_parallel_cross_entropy",
]
