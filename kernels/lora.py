"""Low-rank adapters on frozen weights, of 16 bits or of 4: one layer, and a whole feed-forward layer.

    lora_linear:  y = x · Wᵀ + bias + s · (x · Aᵀ) · Bᵀ
    lora_mlp:     y = down(silu(gate(x)) · up(x)), each of the three as above

``lora_linear`` is the operator of ``nf4_linear`` (``nf4/linear.py``) on a weight that is not packed. ``lora_mlp``
keeps x, gate(x) and up(x) for the backward pass, and what is as narrow as an adapter; their product, which the
adapter of ``down`` needs once more, is computed again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import activation
from .backend import use_triton
from .checks import check_same_shape
from .loss_checks import autocast
from .nf4 import linear
from .nf4.linear import Weight
from .operator import define
from .reference import activation as definition
from .reference.dtypes import widen


def lora_linear(
    x: Tensor,
    w: Weight,
    lora_a: Tensor,
    lora_b: Tensor,
    bias: Tensor | None = None,
    lora_scale: float = 1.0,
) -> Tensor:
    """``x @ wᵀ + bias + lora_scale · (x @ lora_aᵀ) @ lora_bᵀ`` (Hu et al. 2021, arXiv:2106.09685).

    Gradients reach x, lora_a, lora_b and bias; the weight is frozen.

    Args:
        x: (..., K), any floating dtype. Under autocast it is cast as for ``torch.nn.functional.linear``.
        w: (N, K), in x's dtype and without gradient; or an ``NF4Tensor``.
        lora_a: (R, K), and lora_b: (N, R), any floating dtype, cast to x's.
        bias: (N,).
        lora_scale: α / R in the paper.

    Raises:
        ValueError: for a shape, dtype or device that does not fit, or a weight that wants a gradient.

    Example::

        base = torch.nn.Linear(128, 256).requires_grad_(False)
        lora_a = torch.nn.Parameter(torch.randn(8, 128) / 16)
        lora_b = torch.nn.Parameter(torch.zeros(256, 8))
        y = lora_linear(torch.randn(4, 10, 128), base.weight, lora_a, lora_b, base.bias)
        y.square().mean().backward()
    """
    return linear.frozen_linear(x, w, bias, lora_a, lora_b, lora_scale)


class Adapted(NamedTuple):
    """A frozen weight and its adapter, as ``lora_mlp`` takes them; see ``lora_linear``."""

    w: Weight
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    bias: Tensor | None = None
    lora_scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return linear.frozen_linear(x, self.w, self.bias, self.lora_a, self.lora_b, self.lora_scale)


# ------------------------------------------------------------------------------ the second half of lora_mlp


def _product(gate: Tensor, up: Tensor, kernels: bool) -> Tensor:
    return activation._run_gated(gate, up, "silu") if kernels else definition.swiglu(gate, up)


def _product_gradients(grad: Tensor, gate: Tensor, up: Tensor, kernels: bool) -> tuple[Tensor, Tensor]:
    if kernels:
        return activation._run_gated_backward(grad, gate, up, "silu")
    grad, wide_gate, wide_up = widen(grad), widen(gate), widen(up)
    by_gate = torch.ops.aten.silu_backward(grad * wide_up, wide_gate)
    return by_gate.to(gate.dtype), (grad * torch.nn.functional.silu(wide_gate)).to(up.dtype)


def _run(gate: Tensor, up: Tensor, *rest) -> tuple[Tensor, Tensor]:
    kernels = rest[5]
    return linear.forward(linear.Call.of(_product(gate, up, kernels), *rest))


def _allocate(gate: Tensor, up: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return linear.allocate(linear.Call.of(gate, *rest))


def _run_backward(
    grad: Tensor, hidden: Tensor, wanted, gate: Tensor, up: Tensor, *rest
) -> tuple[Tensor, ...]:
    call = linear.Call.of(_product(gate, up, rest[5]), *rest)
    into_product = wanted[0] or wanted[1]
    grad_product, *others = linear.gradients(call, grad, hidden, [into_product, *wanted[2:]])
    if not into_product:
        return gate.new_empty(0), gate.new_empty(0), *others
    return *_product_gradients(grad_product, gate, up, call.kernels), *others


def _allocate_backward(
    grad: Tensor, hidden: Tensor, wanted, gate: Tensor, up: Tensor, *rest
) -> tuple[Tensor, ...]:
    into_product = wanted[0] or wanted[1]
    shaped = linear.allocate_gradients(linear.Call.of(gate, *rest), [into_product, *wanted[2:]])
    return torch.empty_like(shaped[0]), *shaped


_SCHEMA = linear.CALL_SCHEMA.replace("Tensor x", "Tensor gate, Tensor up", 1)

_backward_op = define(
    f"swiglu_linear_backward(Tensor grad, Tensor hidden, bool[] wanted, {_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.rest = inputs[6:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor | None, _) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.rest)
    if grad is None:
        return *(None,) * 6, *nothing
    *tensors, hidden = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[at] for at in (0, 1, 3, 4, 5)]
    found = _backward_op(grad, hidden, wanted, *tensors, *ctx.rest)
    grad_gate, grad_up, *others = (g if want else None for g, want in zip(found, wanted, strict=True))
    return grad_gate, grad_up, None, *others, *nothing


_swiglu_linear_op = define(
    f"swiglu_linear({_SCHEMA}) -> (Tensor, Tensor)", _run, _allocate, backward=_differentiate, save=_save
)


def _swiglu_linear(gate: Tensor, up: Tensor, down: Adapted) -> Tensor:
    """``down(swiglu(gate, up))``, of which nothing but gate and up is kept."""
    check_same_shape("up(x)", up, "gate(x)", gate)
    linear.check(gate, down.w, down.bias, down.lora_a, down.lora_b)
    gate, up, *parameters = autocast(gate, up, down.bias, down.lora_a, down.lora_b)
    parameters = [None if p is None else p.to(gate.dtype) for p in parameters]
    tensor, layout = linear.unpack(down.w)
    if tensor is down.w:
        tensor = tensor.to(gate.dtype)
    rows = [t.reshape(-1, t.shape[-1]) for t in (gate, up)]
    rest = (down.lora_scale, use_triton(gate), *layout)
    y, _ = _swiglu_linear_op(*rows, tensor, *parameters, *rest)
    return y.view(*gate.shape[:-1], down.w.shape[0])


def lora_mlp(x: Tensor, gate: Adapted, up: Adapted, down: Adapted) -> Tensor:
    """``down(silu(gate(x)) · up(x))``: a feed-forward layer whose three frozen weights have adapters.

    For the backward pass it keeps x, gate(x) and up(x), and four tensors as wide as an adapter's rank.

    Args:
        x: (..., E), any floating dtype. Under autocast it is cast as for ``torch.nn.functional.linear``.
        gate, up: weights (F, E) with their adapters.
        down: weight (E, F) with its adapter.

    Raises:
        ValueError: as ``lora_linear``.

    Example::

        def adapted(rows, width):
            w = quantize_nf4(torch.randn(rows, width) / width**0.5)
            lora_a = torch.nn.Parameter(torch.randn(8, width) / width**0.5)
            return Adapted(w, lora_a, torch.nn.Parameter(torch.zeros(rows, 8)))


        y = lora_mlp(torch.randn(4, 10, 64), adapted(128, 64), adapted(128, 64), adapted(64, 128))
        y.square().mean().backward()
    """
    return _swiglu_linear(gate(x), up(x), down)
