"""Attention for training and decoding."""

from .api import flash_attention as flash_attention
from .block_mask import BlockMask as BlockMask
from .compat import flash_attn_func as flash_attn_func
from .compat import flash_attn_kvpacked_func as flash_attn_kvpacked_func
from .compat import flash_attn_qkvpacked_func as flash_attn_qkvpacked_func
from .compat import flash_attn_varlen_func as flash_attn_varlen_func
from .compat import flash_attn_with_kvcache as flash_attn_with_kvcache
from .compat import sdpa as sdpa
from .decode import flash_decode as flash_decode
from .weights import attention_weights as attention_weights
