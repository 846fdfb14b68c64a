"""The operator of ``linear``: what it is called with, its two ways, and the derivative."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.dtypes import wide_dtype, widen
from ..frame.fixed_order import exact_product
from ..frame.launch import Chip, cdiv, run
from ..frame.operator import define
from ..frame.rows import evenly_spaced_rows
from .kernels import linear_kernel
from .launch import linear_launch


class LinearCall(NamedTuple):
    x: Tensor  # (M, K)
    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    kernels: bool  # or the definition

    def allocate(self) -> Tensor:
        return self.x.new_empty((self.x.shape[0], self.weight.shape[0]))


class LinearKept(NamedTuple):
    x: Tensor
    weight: Tensor
    kernels: bool

    @staticmethod
    def fields(call: LinearCall, y: Tensor) -> tuple:
        return call.x, call.weight, call.kernels


class LinearBackwardCall(NamedTuple):
    grad: Tensor  # (M, N)
    wanted: list[bool]  # of x, weight and bias
    kept: LinearKept

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, _ = self.kept
        shapes = (x.shape, weight.shape, weight.shape[:1])
        grad_x, grad_weight, grad_bias = (
            x.new_empty(shape if want else 0) for shape, want in zip(shapes, self.wanted, strict=True)
        )
        return grad_x, grad_weight, grad_bias


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: bool = False, transposed: bool = False) -> Tensor:
    """``x @ weightᵀ + bias``, or with ``transposed`` ``x @ weight``, each row on its own."""
    if not kernels:
        y = exact_product(x, weight.mT if transposed else weight)
        return (y if bias is None else y + bias.double()).to(x.dtype)
    x, x_stride = evenly_spaced_rows(x)
    weight, weight_stride = evenly_spaced_rows(weight)
    depth, columns = weight.shape if transposed else weight.shape[::-1]
    y = x.new_empty((x.shape[0], columns))
    chosen = linear_launch(Chip.of(x.device), x.element_size())
    run(
        linear_kernel,
        (cdiv(x.shape[0], chosen.rows) * cdiv(columns, chosen.columns),),
        x,
        *(x, weight, bias, y, x.shape[0], columns, depth, x_stride, weight_stride),
        TRANSPOSED=transposed,
        EVEN=depth % chosen.depth == 0,
        ROWS=chosen.rows,
        COLUMNS=chosen.columns,
        DEPTH=chosen.depth,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return y


def forward(call: LinearCall) -> Tensor:
    x, weight, bias, kernels = call
    return multiply(x, weight, None if bias is None else bias.contiguous(), kernels)


def backward(call: LinearBackwardCall) -> tuple[Tensor, ...]:
    """The gradients of x, weight and bias. The last two are sums over all rows, which no batch can be left out of:
    the BLAS library computes them."""
    grad, wanted, (x, weight, kernels) = call
    grad_x = multiply(grad, weight, None, kernels, transposed=True) if wanted[0] else x.new_empty(0)
    wide = grad.dtype if kernels else widen(grad).dtype
    with torch.autocast(x.device.type, enabled=False):
        grad_weight = (grad.to(wide).T @ x.to(wide)).to(x.dtype) if wanted[1] else x.new_empty(0)
    grad_bias = grad.sum(0, dtype=wide_dtype(grad.dtype)).to(x.dtype) if wanted[2] else x.new_empty(0)
    return grad_x, grad_weight, grad_bias


_backward_op = define("linear_backward", LinearBackwardCall, backward)


def _differentiate(kept: LinearKept, wanted, grad: Tensor) -> tuple[Tensor | None, ...]:
    chosen = list(wanted[:3])
    found = _backward_op(grad, chosen, kept)
    return tuple(gradient if want else None for gradient, want in zip(found, chosen, strict=True))


linear_op = define("linear", LinearCall, forward, keeps=LinearKept, backward=_differentiate)
