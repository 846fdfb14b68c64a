"""The operators of ``cross_entropy``: what they are called with, what is launched, and the derivative."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv, contiguous, empty
from ..frame.operator import define
from ..frame.plan import Plan, planned
from ..frame.rows import Rows, aligned, rows_of
from .cross_entropy_kernels import cross_entropy_backward, cross_entropy_forward, reduce_loss
from .launch import cross_entropy_backward_launch, cross_entropy_forward_launch, unit_of
from .objective import LossOptions, Objective, objective


class CrossEntropyCall(NamedTuple):
    logits: Tensor  # (..., V)
    target: Tensor  # (...)
    class_weight: Tensor | None  # (V,)
    reduction: str
    predicts: bool  # whether to find out which tokens' targets have the largest logit
    options: LossOptions

    def allocate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, the log-sum-exp of each token, what the loss of a token is multiplied by (empty where each
        token's loss is asked for), and 1 for each token that is predicted (empty unless asked for)."""
        lse = empty(self.target, torch.float32)
        correct = empty(lse) if self.predicts else lse.new_empty(0)
        if self.reduction == "none":
            return empty(lse), lse, lse.new_empty(0), correct
        return lse.new_empty(()), lse, lse.new_empty(()), correct


class CrossEntropyKept(NamedTuple):
    lse: Tensor
    scale: Tensor | None
    call: CrossEntropyCall

    @staticmethod
    def fields(call: CrossEntropyCall, loss: Tensor, lse: Tensor, scale: Tensor, correct: Tensor) -> tuple:
        return lse, None if call.reduction == "none" else scale, call


class CrossEntropyBackwardCall(NamedTuple):
    grad_loss: Tensor
    grad_lse: Tensor | None
    kept: CrossEntropyKept

    def allocate(self) -> Tensor:
        return empty(self.kept.call.logits)


def forward(call: CrossEntropyCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, lse, scale, correct = call.allocate()
    logits, target, class_weight, reduction, predicts, options = call
    chosen = objective(class_weight, *options)
    found = correct if predicts else None
    if reduction == "none":
        forward_rows(logits, target, chosen, loss, lse, found)
        return loss, lse, scale, correct
    tile = cross_entropy_forward_launch(Chip.of(logits.device), logits.shape[-1])
    programs = cdiv(target.numel(), tile.rows)
    partials = lse.new_empty((2, programs))
    forward_rows(logits, target, chosen, None, lse, found, partials)
    _reduce_plan(programs, reduction == "mean").run(logits, partials, loss, scale)
    return loss, lse, scale, correct


@planned
def _reduce_plan(programs: int, mean: bool) -> Plan:
    return Plan(reduce_loss, (1,), programs, MEAN=mean, BLOCK=4096, num_warps=16)


def backward(call: CrossEntropyBackwardCall) -> Tensor:
    grad_logits = call.allocate()
    grad_loss, grad_lse, (lse, scale, (logits, target, class_weight, _, _, options)) = call
    chosen = objective(class_weight, *options)
    backward_rows(grad_loss, grad_lse, scale, logits, target, chosen, lse, grad_logits)
    return grad_logits


@planned
def _forward_plan(chip: Chip, rows: Rows, unit: int, numbers: tuple[float | None, ...]) -> Plan:
    """``numbers`` of an ``Objective``."""
    how = cross_entropy_forward_launch(chip, rows.width)
    tile = {"ROWS": how.rows, "BLOCK": how.block, "UNIT": unit, "num_warps": how.warps}
    numbers = (rows.count, rows.width, *rows.strides, *numbers)
    return Plan(cross_entropy_forward, (cdiv(rows.count, how.rows),), *numbers, STRIDED=rows.strided, **tile)


@planned
def _backward_plan(
    chip: Chip, rows: Rows, unit: int, numbers: tuple[float | None, ...], gradient_filter: float | None
) -> Plan:
    how = cross_entropy_backward_launch(chip, rows.width)
    tile = {"ROWS": how.rows, "BLOCK": how.block, "UNIT": unit, "num_warps": how.warps}
    *options, classes = numbers
    numbers = (rows.count, rows.width, *rows.strides, *options, gradient_filter, classes)
    grid = (cdiv(rows.count, how.rows), cdiv(rows.width + unit - 1, how.block))
    return Plan(cross_entropy_backward, grid, *numbers, STRIDED=rows.strided, **tile)


def forward_rows(
    logits: Tensor,
    target: Tensor,
    chosen: Objective,
    loss: Tensor | None,
    lse: Tensor,
    correct: Tensor | None = None,
    partials: Tensor | None = None,
) -> None:
    """Fills ``loss``, ``lse`` and ``correct`` of each row of ``logits``, and the sums ``partials`` of each program."""
    invariant = is_batch_invariant()
    logits, rows = rows_of(aligned(logits) if invariant else logits)
    # Units make the order of a row's sum depend on where it starts.
    plan = _forward_plan(Chip.of(logits.device), rows, 1 if invariant else unit_of(logits), chosen.numbers)
    found = (loss, lse, correct, partials)
    plan.run(logits, logits, target.contiguous(), chosen.weight, chosen.weight_sum, *found)


def backward_rows(
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    scale: Tensor | None,
    logits: Tensor,
    target: Tensor,
    chosen: Objective,
    lse: Tensor,
    grad_logits: Tensor,
    gradient_filter: float | None = None,
) -> None:
    """Fills ``grad_logits``, contiguous rows, which may be the logits themselves.

    ``grad_loss`` is one number a row, or with ``scale`` one number for all, to be multiplied by ``scale``.
    """
    logits, rows = rows_of(logits)
    plan = _backward_plan(Chip.of(logits.device), rows, unit_of(logits), chosen.numbers, gradient_filter)
    inputs = (grad_loss.contiguous(), contiguous(grad_lse), scale, logits, target.contiguous())
    plan.run(logits, *inputs, chosen.weight, chosen.weight_sum, lse, grad_logits)


_backward_op = define("cross_entropy_backward", CrossEntropyBackwardCall, backward)


def _differentiate(
    kept: CrossEntropyKept, wanted, grad_loss: Tensor | None, grad_lse: Tensor | None, *_
) -> tuple[Tensor]:
    if grad_loss is None:
        grad_loss = torch.zeros_like(kept.lse if kept.scale is None else kept.scale)
    return (_backward_op(grad_loss, grad_lse, kept),)


cross_entropy_op = define(
    "cross_entropy",
    CrossEntropyCall,
    forward,
    keeps=CrossEntropyKept,
    backward=_differentiate,
    auxiliary=2,
)
