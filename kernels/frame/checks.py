"""Argument checks that the public functions share: ValueErrors that name the argument and what it got."""

from typing import Any

import torch
from torch import Tensor


def check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")


def check_same_device(name: str, tensor: Any, x: Tensor) -> None:
    if tensor is not None and not on_one_device(tensor, x):
        raise ValueError(f"{name} is on {tensor.device}, but the first argument is on {x.device}")


def on_one_device(a: Any, b: Tensor) -> bool:
    """``a.device == b.device``, without the two objects (0.3 µs of the host each) where both are on the CPU."""
    return (a.is_cpu and b.is_cpu) or a.device == b.device


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name} {tuple(other.shape)}, got {tuple(tensor.shape)}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_same_dtype(name: str, tensor: Tensor | None, other_name: str, other: Tensor) -> None:
    """Under autocast the dtypes may differ: they become one."""
    if tensor is None or tensor.dtype == other.dtype or torch.is_autocast_enabled(other.device.type):
        return
    raise ValueError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
