"""Triton kernels for training language models, each beside its plain PyTorch definition."""

from .attention import flash_attention as flash_attention
