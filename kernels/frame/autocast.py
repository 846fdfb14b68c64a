"""Autocast, as the linear layers follow it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .torch_private import is_any_autocast_enabled


def autocast(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype in which autocast, where it is on, computes linear layers."""
    tensors = (first, *others)
    if not is_any_autocast_enabled():  # The name of a device's type alone takes the host 3 µs.
        return tensors
    device = first.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def without_autocast(x: Tensor, kernels: bool) -> AbstractContextManager[Any]:
    """The definition computes wide, also where autocast is on; what the kernels get is in autocast's dtype already."""
    return nullcontext() if kernels else torch.autocast(x.device.type, enabled=False)
