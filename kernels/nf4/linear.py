"""A linear layer on a frozen weight, 4-bit or not, with a low-rank adapter that trains.

    y = x · Wᵀ + bias + lora_scale · (x · Aᵀ) · Bᵀ

W gets no gradient. With G the gradient of y, and U = G · B,

    grad_x = G · W + lora_scale · U · A      grad_A = lora_scale · Uᵀ · x      grad_B = lora_scale · Gᵀ · (x · Aᵀ)

Nothing decoded is kept for the backward pass, which decodes anew.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import use_triton
from ..checks import check_floating, check_same_device
from ..loss_checks import autocast, check_same_dtype
from ..operator import define
from ..reference import nf4 as definition
from ..reference.dtypes import widen
from . import dequantize
from .layout import SCHEMA, Layout
from .products import Factors, multiply
from .tensor import NF4Tensor

Weight = Tensor | NF4Tensor

# ------------------------------------------------------------------------------------------------- operators


class Call(NamedTuple):
    x: Tensor  # (M, K)
    weight: Tensor  # (N, K), or the record of a 4-bit one
    bias: Tensor | None  # (N,)
    lora_a: Tensor | None  # (R, K)
    lora_b: Tensor | None  # (N, R)
    lora_scale: float
    kernels: bool
    layout: Layout | None  # None for a weight that is not packed

    @staticmethod
    def of(*arguments) -> "Call":
        shape, *rest = arguments[7:]
        return Call(*arguments[:7], Layout.of(shape, *rest) if shape else None)

    @property
    def rows(self) -> int:
        return self.weight.shape[0] if self.layout is None else self.layout.shape[0]

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """W in ``dtype``."""
        if self.layout is None:
            return self.weight.to(dtype)
        decoded = dequantize.by_kernel if self.kernels else dequantize.by_definition
        return decoded(self.weight, self.layout, dtype)


CALL_SCHEMA = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float lora_scale, bool kernels, "
    + SCHEMA
)
NOT_PACKED = ([], 0, False, "")


def unpack(w: Weight) -> tuple[Tensor, tuple]:
    """The tensor of a weight and its layout, as operators take them."""
    return (w.bytes, w.layout.arguments) if isinstance(w, NF4Tensor) else (w, NOT_PACKED)


def without_autocast(x: Tensor, kernels: bool) -> AbstractContextManager:
    """The definition computes wide, also where autocast is on; what the kernels get is in autocast's dtype already."""
    return nullcontext() if kernels else torch.autocast(x.device.type, enabled=False)


def allocate(call: Call) -> tuple[Tensor, Tensor]:
    x = call.x
    dtype = x.dtype if call.kernels else widen(x.new_empty(0)).dtype
    hidden_shape = 0 if call.lora_a is None else (x.shape[0], call.lora_a.shape[0])
    return x.new_empty((x.shape[0], call.rows)), x.new_empty(hidden_shape, dtype=dtype)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """y (M, N), and ``x · Aᵀ`` (M, R) for the backward pass: in the dtype of x, and wide without the kernels."""
    x = call.x
    with without_autocast(x, call.kernels):
        if not call.kernels:
            weight = call.numbers(torch.float32 if call.layout else x.dtype)
            return definition.linear(x, weight, call.bias, call.lora_a, call.lora_b, call.lora_scale)
        hidden = None if call.lora_a is None else F.linear(x, call.lora_a)
        if call.layout is not None:
            y = multiply(
                Factors(x, call.weight, call.layout, call.bias, hidden, call.lora_b, call.lora_scale)
            )
        else:
            y = F.linear(x, call.weight, call.bias)
            if hidden is not None:
                y.addmm_(hidden, call.lora_b.T, alpha=call.lora_scale)
        return y, x.new_empty(0) if hidden is None else hidden


def allocate_gradients(call: Call, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Of x, bias, lora_a and lora_b; empty where not wanted."""
    tensors = (call.x, *call[2:5])
    return tuple(call.x.new_empty(t.shape if want else 0) for t, want in zip(tensors, wanted, strict=True))


def gradients(call: Call, grad: Tensor, hidden: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Computed in the dtype of x by the kernels, and wide without them."""
    dtype = call.x.dtype if call.kernels else widen(call.x).dtype
    x, grad = call.x.to(dtype), grad.to(dtype)
    grad_x = grad_bias = grad_a = grad_b = None
    with without_autocast(x, call.kernels):
        if wanted[0]:
            grad_x = grad @ call.numbers(dtype)
        if wanted[1]:
            grad_bias = grad.sum(0, dtype=widen(grad).dtype)
        if call.lora_a is not None:
            low = grad @ call.lora_b.to(dtype)
            if wanted[0]:
                grad_x.addmm_(low, call.lora_a.to(dtype), alpha=call.lora_scale)
            grad_a = _scaled_product(low.T, x, call.lora_scale) if wanted[2] else None
            grad_b = _scaled_product(grad.T, hidden, call.lora_scale) if wanted[3] else None
    found = (grad_x, grad_bias, grad_a, grad_b)
    return tuple(call.x.new_empty(0) if g is None else g.to(call.x.dtype) for g in found)


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale · a · b``, rounded once."""
    return torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


_backward_op = define(
    f"frozen_linear_backward(Tensor grad, Tensor hidden, bool[] wanted, {CALL_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad, hidden, wanted, *arguments: gradients(Call.of(*arguments), grad, hidden, wanted),
    lambda grad, hidden, wanted, *arguments: allocate_gradients(Call.of(*arguments), wanted),
)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.rest = inputs[5:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor | None, _) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.rest)
    if grad is None:
        return None, None, None, None, None, *nothing
    *tensors, hidden = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[at] for at in (0, 2, 3, 4)]
    found = _backward_op(grad, hidden, wanted, *tensors, *ctx.rest)
    grad_x, *others = (g if want else None for g, want in zip(found, wanted, strict=True))
    return grad_x, None, *others, *nothing


_linear_op = define(
    f"frozen_linear({CALL_SCHEMA}) -> (Tensor, Tensor)",
    lambda *arguments: forward(Call.of(*arguments)),
    lambda *arguments: allocate(Call.of(*arguments)),
    backward=_differentiate,
    save=_save,
)

# ------------------------------------------------------------------------------------------- public functions


def frozen_linear(
    x: Tensor,
    w: Weight,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
) -> Tensor:
    """``nf4_linear``, or ``lora_linear``, whichever ``w`` is."""
    check(x, w, bias, lora_a, lora_b)
    x, bias, lora_a, lora_b = autocast(x, bias, lora_a, lora_b)
    bias, lora_a, lora_b = (None if p is None else p.to(x.dtype) for p in (bias, lora_a, lora_b))
    tensor, layout = unpack(w)
    if tensor is w:
        tensor = w.to(x.dtype)
    rows = x.reshape(-1, w.shape[1])
    y, _ = _linear_op(rows, tensor, bias, lora_a, lora_b, lora_scale, use_triton(x), *layout)
    return y.view(*x.shape[:-1], w.shape[0])


def nf4_linear(
    x: Tensor,
    w: NF4Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
) -> Tensor:
    """``x @ wᵀ + bias + lora_scale · (x @ lora_aᵀ) @ lora_bᵀ`` on a 4-bit weight (QLoRA, arXiv:2305.14314).

    Gradients reach x, bias, lora_a and lora_b; the weight is frozen. No decoded weight outlives the call: the
    backward pass decodes again.

    Args:
        x: (..., K), any floating dtype and strides; computing and the result are in its dtype. Under autocast it is
            cast as for ``torch.nn.functional.linear``.
        w: (N, K), from ``quantize_nf4`` or ``from_bitsandbytes``.
        bias: (N,).
        lora_a: (R, K), and lora_b: (N, R), both or neither; any floating dtype, cast to x's.
        lora_scale: α / R in the paper on adapters (arXiv:2106.09685).

    Raises:
        ValueError: for a shape or device that does not fit.

    Example::

        w = quantize_nf4(torch.randn(256, 128) / 16)
        lora_a = torch.nn.Parameter(torch.randn(8, 128) / 16)
        lora_b = torch.nn.Parameter(torch.zeros(256, 8))
        y = nf4_linear(torch.randn(4, 10, 128), w, lora_a=lora_a, lora_b=lora_b, lora_scale=2.0)
        y.square().mean().backward()
    """
    if not isinstance(w, NF4Tensor):
        raise ValueError(f"w must be an NF4Tensor, as quantize_nf4 makes them, got {type(w).__name__}")
    return frozen_linear(x, w, bias, lora_a, lora_b, lora_scale)


def check(x: Tensor, w: Weight, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None) -> None:
    check_floating("x", x)
    if len(w.shape) != 2 or x.dim() == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"w must be (N, K) for x (..., K), got {tuple(w.shape)} for {tuple(x.shape)}")
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora_a and lora_b come together, got one of them")
    rows, width = w.shape
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must have one element a row of w, ({rows},), got {tuple(bias.shape)}")
    if lora_a is not None:
        rank = lora_a.shape[0] if lora_a.dim() else 0
        if lora_a.shape != (rank, width) or lora_b.shape != (rows, rank):
            raise ValueError(
                f"lora_a and lora_b must be (R, {width}) and ({rows}, R), "
                f"got {tuple(lora_a.shape)} and {tuple(lora_b.shape)}"
            )
    if isinstance(w, Tensor):
        check_same_dtype("w", w, "x", x)
        if w.requires_grad:
            raise ValueError("w is frozen and gets no gradient: detach it, or set requires_grad to False")
    for name, tensor in (("w", w), ("bias", bias), ("lora_a", lora_a), ("lora_b", lora_b)):
        check_same_device(name, tensor, x)
