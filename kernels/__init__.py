"""Triton kernels for training language models, each beside its plain PyTorch definition."""
