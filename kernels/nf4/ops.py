"""The operators of a linear layer on a frozen weight, 4-bit or not, with a low-rank adapter that trains."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.autocast import without_autocast
from ..frame.dtypes import widen
from ..frame.operator import define
from . import dequantize, reference
from .layout import Layout, LayoutArguments
from .products import Factors, linear, multiply, with_adapter


class FrozenLayer(NamedTuple):
    """A frozen weight W, with what is added to ``x · Wᵀ``."""

    weight: Tensor  # (N, K), or the record of a 4-bit one
    bias: Tensor | None  # (N,)
    lora_a: Tensor | None  # (R, K)
    lora_b: Tensor | None  # (N, R)
    lora_scale: float
    kernels: bool  # or the definitions
    packing: LayoutArguments  # without a shape for a weight that is not packed

    @property
    def layout(self) -> Layout | None:
        return Layout.of(*self.packing) if self.packing.shape else None

    @property
    def rows(self) -> int:
        return self.packing.shape[0] if self.packing.shape else self.weight.shape[0]

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """W in ``dtype``."""
        layout = self.layout
        if layout is None:
            return self.weight.to(dtype)
        decoded = dequantize.by_kernel if self.kernels else dequantize.by_definition
        return decoded(self.weight, layout, dtype)


class FrozenLinearCall(NamedTuple):
    x: Tensor  # (M, K)
    layer: FrozenLayer

    def allocate(self) -> tuple[Tensor, Tensor]:
        x, layer = self
        dtype = x.dtype if layer.kernels else widen(x.new_empty(0)).dtype
        hidden_shape = 0 if layer.lora_a is None else (x.shape[0], layer.lora_a.shape[0])
        return x.new_empty((x.shape[0], layer.rows)), x.new_empty(hidden_shape, dtype=dtype)


class FrozenLinearKept(NamedTuple):
    hidden: Tensor  # (M, R)
    call: FrozenLinearCall

    @staticmethod
    def fields(call: FrozenLinearCall, y: Tensor, hidden: Tensor) -> tuple:
        return hidden, call


class FrozenLinearBackwardCall(NamedTuple):
    grad: Tensor  # (M, N)
    wanted: list[bool]  # of x, bias, lora_a and lora_b
    kept: FrozenLinearKept

    def allocate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of x, bias, lora_a and lora_b, empty where not wanted."""
        x, (_, *parameters, _, _, _) = self.kept.call
        grad_x, grad_bias, grad_a, grad_b = (
            x.new_empty(t.shape if want else 0) for t, want in zip((x, *parameters), self.wanted, strict=True)
        )
        return grad_x, grad_bias, grad_a, grad_b


def forward(call: FrozenLinearCall) -> tuple[Tensor, Tensor]:
    """y (M, N), and ``x · Aᵀ`` (M, R) for the backward pass: in the dtype of x with the kernels, and at least in
    float32 without."""
    x, layer = call
    _, bias, lora_a, lora_b, lora_scale, kernels, _ = layer
    with without_autocast(x, kernels):
        layout = layer.layout
        if not kernels:
            weight = layer.numbers(x.dtype if layout is None else torch.float32)
            return reference.linear(x, weight, bias, lora_a, lora_b, lora_scale)
        hidden = None if lora_a is None else linear(x, lora_a)
        if layout is not None:
            y = multiply(Factors(x, layer.weight, layout, bias, hidden, lora_b, lora_scale))
        else:
            y = with_adapter(linear(x, layer.weight, bias), hidden, lora_b, lora_scale)
        return y, x.new_empty(0) if hidden is None else hidden


def backward(call: FrozenLinearBackwardCall) -> tuple[Tensor, ...]:
    """The gradients of x, bias, lora_a and lora_b, computed in the dtype of x with the kernels, and at least in
    float32 without."""
    grad, wanted, (hidden, (x, layer)) = call
    dtype = x.dtype if layer.kernels else widen(x).dtype
    wide, grad = x.to(dtype), grad.to(dtype)
    grad_x = grad_bias = grad_a = grad_b = None
    with without_autocast(wide, layer.kernels):
        if wanted[0]:
            grad_x = grad @ layer.numbers(dtype)
        if wanted[1]:
            grad_bias = grad.sum(0, dtype=widen(grad).dtype)
        if layer.lora_a is not None:
            low = grad @ layer.lora_b.to(dtype)
            if wanted[0]:
                grad_x.addmm_(low, layer.lora_a.to(dtype), alpha=layer.lora_scale)
            grad_a = _scaled_product(low.T, wide, layer.lora_scale) if wanted[2] else None
            grad_b = _scaled_product(grad.T, hidden, layer.lora_scale) if wanted[3] else None
    found = (grad_x, grad_bias, grad_a, grad_b)
    return tuple(x.new_empty(0) if g is None else g.to(x.dtype) for g in found)


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale · a · b``, rounded once."""
    return torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


def only(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are wanted, and None for the others."""
    return [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]


_backward_op = define("frozen_linear_backward", FrozenLinearBackwardCall, backward)


def _differentiate(kept: FrozenLinearKept, wanted, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    chosen = [wanted[at] for at in (0, 2, 3, 4)]
    grad_x, *others = only(_backward_op(grad, chosen, kept), chosen)
    return grad_x, None, *others


linear_op = define(
    "frozen_linear",
    FrozenLinearCall,
    forward,
    keeps=FrozenLinearKept,
    backward=_differentiate,
    auxiliary=1,
)
