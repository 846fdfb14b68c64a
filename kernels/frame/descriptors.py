"""Tensor descriptors made on the host, as cheaply as a launch allows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._triton import HAS_TRITON

if HAS_TRITON:
    from triton.tools.tensor_descriptor import TensorDescriptor

_settings: dict[tuple[int, ...], dict[str, Any]] = {}


def descriptor(x: Tensor, shape: Sequence[int], strides: Sequence[int], block: tuple[int, ...]) -> "TensorDescriptor":
    """``TensorDescriptor(x, shape, strides, block)`` without its checks, which take as long as a launch.

    The first of each block is checked. Callers see to it that the memory and all strides but the last, which is 1, are
    multiples of 16 bytes, and that no size is 0.
    """
    settings = _settings.get(block)
    if settings is None:
        first = TensorDescriptor(x, shape, strides, list(block))
        _settings[block] = {**vars(first), "base": None}  # No tensor is kept alive.
        return first
    made = object.__new__(TensorDescriptor)
    made.__dict__.update(settings, base=x, shape=shape, strides=strides)
    return made
