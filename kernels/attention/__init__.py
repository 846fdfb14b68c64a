"""Attention for training and decoding."""

from .api import flash_attention as flash_attention
