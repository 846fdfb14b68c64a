"""Argument checks that the public functions share: ValueErrors that name the argument and what it got."""

import math
import operator
from typing import Any

import torch
from torch import Tensor


def check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")


def check_parameter(name: str, tensor: Tensor | None, x: Tensor) -> None:
    """Of floating-point numbers on the device of ``x``: an integer or complex one would be converted unnoticed."""
    if tensor is not None:
        check_floating(name, tensor)
        check_same_device(name, tensor, x)


def check_number(name: str, value: float, least: float = -math.inf) -> None:
    """Of an option: infinities and NaN would turn every result into NaN."""
    try:
        fits = least <= value < math.inf and value > -math.inf
    except TypeError:
        fits = False
    if not fits:
        wanted = "finite" if least == -math.inf else f"finite and at least {least:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def as_integer(name: str, value: Any) -> int:
    """``value`` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None


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
