"""Attention for training and decoding."""

from .api import flash_attention as flash_attention
from .decode import flash_decode as flash_decode
