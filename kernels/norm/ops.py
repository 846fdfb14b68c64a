"""The operators of the norms: what they are called with, what is launched, and the derivative."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv, contiguous, empty
from ..frame.operator import define
from ..frame.partials import sum_partials
from ..frame.plan import Plan, planned
from ..frame.rows import Rows, aligned, row_count, rows_of
from .kernels import (
    norm_backward,
    norm_backward_wide,
    norm_forward,
    norm_forward_wide,
    parameter_gradients_wide,
)
from .launch import backward_launch, backward_programs, forward_launch


class NormCall(NamedTuple):
    x: Tensor  # (..., E)
    weight: Tensor | None  # (E,), or (H, D) with one row per head
    bias: Tensor | None  # as weight
    residual: Tensor | None  # as x
    eps: float
    weight_offset: float
    center: bool  # layer normalization, which subtracts the mean

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, the new residual (empty without a residual), and the statistics of each row."""
        x, residual = self.x, self.residual
        stats = x.new_empty((1 + self.center) * row_count(x), dtype=torch.float32)
        if residual is None:
            return empty(x), x.new_empty(0), stats
        dtype = torch.promote_types(x.dtype, residual.dtype)
        return empty(x, dtype), empty(x, dtype), stats


class NormKept(NamedTuple):
    h: Tensor
    weight: Tensor | None
    bias: Tensor | None
    stats: Tensor
    weight_offset: float
    center: bool
    x_dtype: torch.dtype
    residual_dtype: torch.dtype | None

    @staticmethod
    def fields(call: NormCall, y: Tensor, h: Tensor, stats: Tensor) -> tuple:
        x, weight, bias, residual, _, weight_offset, center = call
        options = (stats, weight_offset, center, x.dtype)
        if residual is None:
            return x, weight, bias, *options, None
        return h, weight, bias, *options, residual.dtype


class NormBackwardCall(NamedTuple):
    grad_y: Tensor
    grad_h: Tensor | None
    weight_gradient: bool
    bias_gradient: bool
    kept: NormKept

    @property
    def wanted(self) -> tuple[Tensor | None, Tensor | None]:
        """The parameters whose gradients are asked for."""
        kept = self.kept
        return kept.weight if self.weight_gradient else None, kept.bias if self.bias_gradient else None

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        h = self.kept.h
        grad_weight, grad_bias = (h.new_empty(0) if p is None else p.new_empty(p.shape) for p in self.wanted)
        return empty(h), grad_weight, grad_bias


def _groups(weight: Tensor | None, bias: Tensor | None) -> int:
    """How many rows of parameters there are: H for per-head parameters (H, D), else 1."""
    parameter = bias if weight is None else weight
    return 1 if parameter is None or parameter.dim() == 1 else max(parameter.shape[0], 1)


@planned
def forward_plan(chip: Chip, rows: Rows, groups: int, eps: float, weight_offset: float, center: bool) -> Plan:
    chosen = forward_launch(chip, rows.width)
    per_group = rows.count // groups
    tile = {} if chosen.wide else {"ROWS": chosen.rows}
    return Plan(
        norm_forward_wide if chosen.wide else norm_forward,
        (cdiv(per_group, chosen.rows), groups),
        *(per_group, groups, rows.width, *rows.strides, eps, weight_offset),
        CENTER=center,
        STRIDED=rows.strided,
        BLOCK=chosen.block,
        num_warps=chosen.warps,
        maxnreg=chosen.registers,
        **tile,
    )


def forward(call: NormCall) -> tuple[Tensor, Tensor, Tensor]:
    y, h, stats = call.allocate()
    x, weight, bias, residual, eps, weight_offset, center = call
    if is_batch_invariant():  # Another variant of the kernel, for strides or addresses, may add up a row otherwise.
        x, residual = aligned(x), None if residual is None else aligned(residual)
    x, rows = rows_of(x)
    plan = forward_plan(Chip.of(x.device), rows, _groups(weight, bias), eps, weight_offset, center)
    plan.run(x, x, contiguous(residual), contiguous(weight), contiguous(bias), y, h, stats)
    return y, h, stats


class BackwardPlan(NamedTuple):
    programs: int  # each of which writes a row of partial gradients of the parameters
    gradients: Plan
    of_parameters: Plan | None  # where the kernel of the first plan leaves them out


@planned
def backward_plan(
    chip: Chip, rows: Rows, itemsize: int, groups: int, weight_offset: float, center: bool, any_parameter: bool
) -> BackwardPlan:
    chosen = backward_launch(chip, rows.width, itemsize)
    per_group = rows.count // groups
    column_blocks = max(1, cdiv(rows.width, chosen.block))
    programs = backward_programs(chosen, per_group, groups * column_blocks, chip)
    layout = (per_group, groups, rows.width, *rows.strides)
    fixed = {"CENTER": center, "STRIDED": rows.strided, "BLOCK": chosen.block}
    fixed |= {"num_warps": chosen.warps, "maxnreg": chosen.registers}
    if not chosen.wide:
        tile = {"ROWS": chosen.rows, **fixed}
        return BackwardPlan(programs, Plan(norm_backward, (programs, groups), *layout, weight_offset, **tile), None)
    grid = (programs, groups, column_blocks if any_parameter else 0)
    return BackwardPlan(
        programs,
        Plan(norm_backward_wide, (per_group, groups), *layout, weight_offset, **fixed),
        Plan(parameter_gradients_wide, grid, *layout, **fixed),
    )


def backward(call: NormBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    kept, wanted = call.kept, call.wanted
    weight, center = kept.weight, kept.center
    groups = _groups(weight, kept.bias)
    h, rows = rows_of(kept.h)
    grad_x = empty(h)
    any_parameter = any(p is not None for p in wanted)
    chip = Chip.of(h.device)
    plan = backward_plan(chip, rows, h.element_size(), groups, kept.weight_offset, center, any_parameter)
    shape = (plan.programs, groups * rows.width)
    partials = [None if p is None else p.new_empty(shape, dtype=torch.float32) for p in wanted]
    grad_y = call.grad_y.contiguous()
    inputs = (grad_y, contiguous(call.grad_h), h, contiguous(weight), kept.stats, grad_x)
    if plan.of_parameters is None:
        plan.gradients.run(h, *inputs, *partials)
    else:
        plan.gradients.run(h, *inputs)
        plan.of_parameters.run(h, grad_y, h, kept.stats, *partials)
    grad_weight, grad_bias = (
        h.new_empty(0) if p is None else sum_partials(partial, p.shape, p.dtype)
        for p, partial in zip(wanted, partials, strict=True)
    )
    return grad_x, grad_weight, grad_bias


_backward_op = define("norm_backward", NormBackwardCall, backward)


def _differentiate(kept: NormKept, wanted, grad_y: Tensor | None, grad_h: Tensor | None, _) -> tuple:
    grad_weight = grad_bias = None
    if kept.residual_dtype is None:  # There is no new residual, only an empty tensor in its place.
        grad_h = None
    if grad_y is None:  # Only the new residual was used.
        grad_x = grad_h
    else:
        _, weight_gradient, bias_gradient, *_ = wanted
        grad_x, grad_weight, grad_bias = _backward_op(grad_y, grad_h, weight_gradient, bias_gradient, kept)
    residual = kept.residual_dtype
    return (
        None if grad_x is None else grad_x.to(kept.x_dtype),
        grad_weight if wanted[1] else None,
        grad_bias if wanted[2] else None,
        None if residual is None or grad_x is None else grad_x.to(residual),
    )


norm_op = define("norm", NormCall, forward, keeps=NormKept, backward=_differentiate, auxiliary=1)
