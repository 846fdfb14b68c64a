"""The operators of ``lora_mlp``: the activation together with the linear layer that follows it."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..activation import ops as activation
from ..activation import reference
from ..frame.dtypes import widen
from ..frame.operator import define
from ..nf4 import ops as linear
from ..nf4.ops import FrozenLayer, FrozenLinearBackwardCall, FrozenLinearCall, FrozenLinearKept


class SwigluLinearCall(NamedTuple):
    gate: Tensor  # (M, F)
    up: Tensor  # (M, F)
    layer: FrozenLayer

    def allocate(self) -> tuple[Tensor, Tensor]:
        return FrozenLinearCall(self.gate, self.layer).allocate()

    def linear(self) -> FrozenLinearCall:
        """The linear layer, on the product of both."""
        return FrozenLinearCall(_product(self.gate, self.up, self.layer.kernels), self.layer)


class SwigluLinearKept(NamedTuple):
    hidden: Tensor  # (M, R)
    call: SwigluLinearCall

    @staticmethod
    def fields(call: SwigluLinearCall, y: Tensor, hidden: Tensor) -> tuple:
        return hidden, call


class SwigluLinearBackwardCall(NamedTuple):
    grad: Tensor  # (M, N)
    wanted: list[bool]  # of gate, up, bias, lora_a and lora_b
    kept: SwigluLinearKept

    def linear(self, call: FrozenLinearCall) -> FrozenLinearBackwardCall:
        """The backward pass of the linear layer ``call``."""
        by_gate, by_up, *parameters = self.wanted
        kept = FrozenLinearKept(self.kept.hidden, call)
        return FrozenLinearBackwardCall(self.grad, [by_gate or by_up, *parameters], kept)

    def allocate(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gate, _, layer = self.kept.call
        grad_product, *others = self.linear(FrozenLinearCall(gate, layer)).allocate()
        return torch.empty_like(grad_product), grad_product, *others


def _product(gate: Tensor, up: Tensor, kernels: bool) -> Tensor:
    if kernels:
        return activation.gated(activation.GatedCall(gate, up, "silu"))
    return reference.gated(gate, up, "silu")


def _product_gradients(grad: Tensor, gate: Tensor, up: Tensor, kernels: bool) -> tuple[Tensor, Tensor]:
    if kernels:
        call = activation.GatedCall(gate, up, "silu")
        return activation.gated_gradients(activation.GatedBackwardCall(grad, call))
    grad, wide_gate, wide_up = widen(grad), widen(gate), widen(up)
    by_gate = torch.ops.aten.silu_backward(grad * wide_up, wide_gate)
    return by_gate.to(gate.dtype), (grad * torch.nn.functional.silu(wide_gate)).to(up.dtype)


def forward(call: SwigluLinearCall) -> tuple[Tensor, Tensor]:
    return linear.forward(call.linear())


def backward(call: SwigluLinearBackwardCall) -> tuple[Tensor, ...]:
    by_gate, by_up, *_ = call.wanted
    gate, up, layer = call.kept.call
    grad_product, *others = linear.backward(call.linear(call.kept.call.linear()))
    if not (by_gate or by_up):
        return gate.new_empty(0), gate.new_empty(0), *others
    return *_product_gradients(grad_product, gate, up, layer.kernels), *others


_backward_op = define("swiglu_linear_backward", SwigluLinearBackwardCall, backward)


def _differentiate(kept: SwigluLinearKept, wanted, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    chosen = [wanted[at] for at in (0, 1, 3, 4, 5)]
    found = _backward_op(grad, chosen, kept)
    grad_gate, grad_up, *others = linear.only(found, chosen)
    return grad_gate, grad_up, None, *others


swiglu_linear_op = define(
    "swiglu_linear",
    SwigluLinearCall,
    forward,
    keeps=SwigluLinearKept,
    backward=_differentiate,
    auxiliary=1,
)
