"""Attention for training and decoding."""

from .api import flash_attention as flash_attention
from .cases import gate_cases as gate_cases
from .decode import flash_decode as flash_decode
from .faces import flash_attn_func as flash_attn_func
from .faces import flash_attn_kvpacked_func as flash_attn_kvpacked_func
from .faces import flash_attn_qkvpacked_func as flash_attn_qkvpacked_func
from .faces import flash_attn_varlen_func as flash_attn_varlen_func
from .faces import flash_attn_with_kvcache as flash_attn_with_kvcache
from .faces import sdpa as sdpa
from .weights import attention_weights as attention_weights
