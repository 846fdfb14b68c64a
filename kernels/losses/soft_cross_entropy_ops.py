"""The operators of ``cross_entropy`` with probabilities as targets: what is launched, and the derivative."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.launch import Chip, cdiv, contiguous, empty, run
from ..frame.operator import define
from .launch import cross_entropy_backward_launch, soft_cross_entropy_launch
from .soft_cross_entropy_kernels import soft_cross_entropy_backward, soft_cross_entropy_forward


class SoftCrossEntropyCall(NamedTuple):
    logits: Tensor  # (..., V)
    target: Tensor  # as logits
    class_weight: Tensor | None  # (V,)
    label_smoothing: float
    z_loss: float
    softcap: float | None

    @property
    def options(self) -> tuple[float | None, float | None, float | None]:
        """As the kernels take them: None for a term that is left out."""
        return self.label_smoothing or None, self.z_loss or None, self.softcap

    @property
    def weight(self) -> Tensor | None:
        return None if self.class_weight is None else self.class_weight.float().contiguous()

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each token's loss, its log-sum-exp, and the sum of its target's weighted probabilities."""
        loss = empty(self.logits[..., 0], torch.float32)
        return loss, empty(loss), empty(loss)


class SoftCrossEntropyKept(NamedTuple):
    lse: Tensor
    mass: Tensor
    call: SoftCrossEntropyCall

    @staticmethod
    def fields(call: SoftCrossEntropyCall, loss: Tensor, lse: Tensor, mass: Tensor) -> tuple:
        return lse, mass, call


class SoftCrossEntropyBackwardCall(NamedTuple):
    grad_loss: Tensor
    grad_lse: Tensor | None
    kept: SoftCrossEntropyKept

    def allocate(self) -> Tensor:
        return empty(self.kept.call.logits)


def forward(call: SoftCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    loss, lse, mass = call.allocate()
    logits, vocabulary = call.logits.contiguous(), call.logits.shape[-1]
    how = soft_cross_entropy_launch(Chip.of(logits.device), vocabulary)
    run(
        soft_cross_entropy_forward,
        (cdiv(loss.numel(), how.rows),),
        logits,
        *(logits, call.target.contiguous(), call.weight, loss, lse, mass, loss.numel(), vocabulary, *call.options),
        ROWS=how.rows,
        BLOCK=how.block,
        num_warps=how.warps,
    )
    return loss, lse, mass


def backward(call: SoftCrossEntropyBackwardCall) -> Tensor:
    grad_logits = call.allocate()
    grad_loss, grad_lse, (lse, mass, forward_call) = call
    logits, vocabulary = forward_call.logits.contiguous(), forward_call.logits.shape[-1]
    how = cross_entropy_backward_launch(Chip.of(logits.device), vocabulary)
    run(
        soft_cross_entropy_backward,
        (cdiv(lse.numel(), how.rows), cdiv(vocabulary, how.block)),
        logits,
        *(grad_loss.contiguous(), contiguous(grad_lse), logits, forward_call.target.contiguous(), forward_call.weight),
        *(lse, mass, grad_logits, lse.numel(), vocabulary, *forward_call.options),
        ROWS=how.rows,
        BLOCK=how.block,
        num_warps=how.warps,
    )
    return grad_logits


_backward_op = define("soft_cross_entropy_backward", SoftCrossEntropyBackwardCall, backward)


def _differentiate(
    kept: SoftCrossEntropyKept, wanted, grad_loss: Tensor | None, grad_lse: Tensor | None, _
) -> tuple[Tensor]:
    grad_loss = torch.zeros_like(kept.lse) if grad_loss is None else grad_loss
    return (_backward_op(grad_loss, grad_lse, kept),)


soft_cross_entropy_op = define(
    "soft_cross_entropy",
    SoftCrossEntropyCall,
    forward,
    keeps=SoftCrossEntropyKept,
    backward=_differentiate,
    auxiliary=1,
)
