"""The operators of the activations: what they are called with, what is launched, and the derivatives."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.launch import Chip, cdiv, contiguous, empty
from ..frame.operator import define
from ..frame.partials import sum_partials
from ..frame.plan import Plan, planned
from ..frame.rows import evenly_spaced_rows, row_count
from .kernels import gated_backward, gated_forward, gelu_backward, gelu_forward
from .launch import MOST_PROGRAMS, bias_programs, launch_for
from .reference import split

# ------------------------------------------------------------------------------- gated: swiglu and geglu


class GatedCall(NamedTuple):
    gate: Tensor  # (..., F), or packed [gate | up] (..., 2F) without up
    up: Tensor | None  # (..., F)
    kind: str  # of activation: a key of ``reference.ACTIVATIONS``

    def allocate(self) -> Tensor:
        gate = self.gate
        return gate.new_empty((*gate.shape[:-1], gate.shape[-1] // 2)) if self.up is None else empty(gate)

    def halves(self) -> tuple[Tensor, Tensor]:
        return split(self.gate) if self.up is None else (self.gate, self.up)


class GatedBackwardCall(NamedTuple):
    grad: Tensor
    call: GatedCall

    def allocate(self) -> tuple[Tensor, Tensor]:
        gate, up, _ = self.call
        return empty(gate), gate.new_empty(0) if up is None else empty(up)


def _as_rows(*tensors: Tensor) -> tuple[int, int, list[tuple[Tensor, int]]]:
    """Rows, columns, and each tensor with the distance between its rows; all contiguous, they are one row."""
    if all(t.is_contiguous() for t in tensors):
        return 1, tensors[0].numel(), [(t, 0) for t in tensors]
    return row_count(tensors[0]), tensors[0].shape[-1], [evenly_spaced_rows(t) for t in tensors]


_KERNELS = {"gated_forward": gated_forward, "gated_backward": gated_backward, "gelu_forward": gelu_forward}


@planned
def _plan(kernel: str, chip: Chip, rows: int, columns: int, strides: tuple[int, ...], kind: str) -> Plan:
    """A program for each block of columns of each row."""
    chosen = launch_for(kernel, chip, columns)
    grid = (rows * cdiv(columns, chosen.block),)
    return Plan(_KERNELS[kernel], grid, columns, *strides, kind, chosen.block, num_warps=chosen.warps)


def gated(call: GatedCall) -> Tensor:
    out = call.allocate()
    rows, columns, ((gate, gate_stride), (up, up_stride)) = _as_rows(*call.halves())
    plan = _plan("gated_forward", Chip.of(out.device), rows, columns, (gate_stride, up_stride), call.kind)
    plan.run(out, gate, up, out)
    return out


def gated_gradients(call: GatedBackwardCall) -> tuple[Tensor, Tensor]:
    gradients = call.allocate()
    grad, forward = call
    # The halves of a packed gradient: views of the one tensor that is returned.
    grad_gate, grad_up = split(gradients[0]) if forward.up is None else gradients
    grad_stride = grad_gate.shape[-1] * (2 if forward.up is None else 1) if grad_gate.dim() else 1
    rows, columns, ((gate, gate_stride), (up, up_stride)) = _as_rows(*forward.halves())
    strides = (gate_stride, up_stride, grad_stride)
    plan = _plan("gated_backward", Chip.of(grad.device), rows, columns, strides, forward.kind)
    plan.run(grad, grad.contiguous(), gate, up, grad_gate, grad_up)
    return gradients


_gated_backward_op = define("gated_backward", GatedBackwardCall, gated_gradients)


def _differentiate_gated(call: GatedCall, wanted, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_gate, grad_up = _gated_backward_op(grad, call)
    return grad_gate, None if call.up is None else grad_up


gated_op = define("gated", GatedCall, gated, backward=_differentiate_gated)

# ------------------------------------------------------------------------------------------- with a bias: gelu


class BiasedCall(NamedTuple):
    x: Tensor  # (..., F)
    bias: Tensor | None  # (F,)
    kind: str

    def allocate(self) -> Tensor:
        return empty(self.x)

    def rows(self) -> tuple[int, int, Tensor, int]:
        """Rows, columns, x, and the distance between its rows."""
        if self.bias is None:
            rows, columns, ((x, stride),) = _as_rows(self.x)
            return rows, columns, x, stride
        x, stride = evenly_spaced_rows(self.x)
        return row_count(x), x.shape[-1], x, stride


class BiasedBackwardCall(NamedTuple):
    grad: Tensor
    bias_gradient: bool
    call: BiasedCall

    def allocate(self) -> tuple[Tensor, Tensor]:
        x, bias, _ = self.call
        return empty(x), bias.new_empty(bias.shape) if self.bias_gradient else x.new_empty(0)


def biased(call: BiasedCall) -> Tensor:
    out = call.allocate()
    rows, columns, x, stride = call.rows()
    plan = _plan("gelu_forward", Chip.of(x.device), rows, columns, (stride,), call.kind)
    plan.run(x, x, contiguous(call.bias), out)
    return out


@planned
def _biased_backward_plan(
    chip: Chip, rows: int, columns: int, stride: int, kind: str, bias_gradient: bool
) -> tuple[int, Plan]:
    """How many programs write partial gradients of the bias, and the launch."""
    chosen = launch_for("gelu_backward", chip, columns)
    programs = bias_programs(rows, columns, chosen, chip) if bias_gradient else rows
    grid = (cdiv(columns, chosen.block), min(programs, MOST_PROGRAMS))
    return programs, Plan(gelu_backward, grid, rows, columns, stride, kind, chosen.block, num_warps=chosen.warps)


def biased_gradients(call: BiasedBackwardCall) -> tuple[Tensor, Tensor]:
    grad, bias_gradient, forward = call
    bias = forward.bias
    grad_x = empty(forward.x)
    rows, columns, x, stride = forward.rows()
    programs, plan = _biased_backward_plan(Chip.of(x.device), rows, columns, stride, forward.kind, bias_gradient)
    partials = x.new_empty((programs, columns), dtype=torch.float32) if bias_gradient else None
    plan.run(x, grad.contiguous(), x, contiguous(bias), grad_x, partials)
    grad_bias = sum_partials(partials, bias.shape, bias.dtype) if bias_gradient else x.new_empty(0)
    return grad_x, grad_bias


_biased_backward_op = define("gelu_backward", BiasedBackwardCall, biased_gradients)


def _differentiate_biased(call: BiasedCall, wanted, grad: Tensor) -> tuple[Tensor | None, ...]:
    bias_gradient = wanted[1]
    grad_x, grad_bias = _biased_backward_op(grad, bias_gradient, call)
    return grad_x, grad_bias if bias_gradient else None


biased_op = define("gelu", BiasedCall, biased, backward=_differentiate_biased)
