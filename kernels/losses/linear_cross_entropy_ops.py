"""The operators of ``linear_cross_entropy``: what they are called with, and the derivatives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.dtypes import wide_dtype
from ..frame.operator import define, define_with_gradients
from . import linear_chunks, linear_tiles
from .linear_call import LinearCrossEntropyCall


class LinearCrossEntropyKept(NamedTuple):
    lse: Tensor
    call: LinearCrossEntropyCall

    @staticmethod
    def fields(call: LinearCrossEntropyCall, loss: Tensor, lse: Tensor, correct: Tensor) -> tuple:
        return lse, call


class LinearCrossEntropyBackwardCall(NamedTuple):
    grad_loss: Tensor
    grad_lse: Tensor | None
    wanted: list[bool]  # of hidden, weight and bias
    kept: LinearCrossEntropyKept

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        call = self.kept.call
        return _allocate_gradients(call, self.wanted, *(3 * (call.hidden.dtype,)))


class LinearCrossEntropySumCall(NamedTuple):
    """The sum of all tokens' losses with its gradients, beside each token's log-sum-exp and prediction: three matrix
    products where the other operator needs four, because the derivative by each token's loss is known from the start.
    """

    wanted: list[bool]  # of hidden, weight and bias
    call: LinearCrossEntropyCall

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        """Of the gradients."""
        summed = linear_chunks.sum_dtype(self.call.hidden, self.call.weight)
        return self.call.hidden.dtype, summed, summed

    def allocate(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        _, lse, correct = self.call.allocate()
        return lse.new_empty(()), lse, correct, *_allocate_gradients(self.call, self.wanted, *self.dtypes)


def _allocate_gradients(
    call: LinearCrossEntropyCall, wanted: Sequence[bool], *dtypes: torch.dtype
) -> tuple[Tensor, ...]:
    return tuple(
        call.hidden.new_empty(p.shape if want else 0, dtype=dtype)
        for p, want, dtype in zip(call[:3], wanted, dtypes, strict=True)
    )


def forward(call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's loss, log-sum-exp and, if asked for (else empty), 1 where it is predicted."""
    if call.how == "tiles":
        return linear_tiles.forward(call)
    loss, lse, correct, _ = linear_chunks.sweep(call)
    return loss, lse, correct


def backward(call: LinearCrossEntropyBackwardCall) -> tuple[Tensor, ...]:
    grad_loss, grad_lse, wanted, (lse, forward_call) = call
    hidden = forward_call.hidden
    if forward_call.how == "tiles":
        gradients = linear_tiles.backward(forward_call, lse, grad_loss, grad_lse, wanted)
    else:
        given = {"lse": lse, "grad_loss": grad_loss, "grad_lse": grad_lse}
        *_, gradients = linear_chunks.sweep(forward_call, **given, wanted=wanted)
    return tuple(hidden.new_empty(0) if g is None else g.to(hidden.dtype) for g in gradients)


_backward_op = define("linear_cross_entropy_backward", LinearCrossEntropyBackwardCall, backward)


def _differentiate(
    kept: LinearCrossEntropyKept, wanted, grad_loss: Tensor | None, grad_lse: Tensor | None, _
) -> tuple[Tensor | None, ...]:
    chosen = list(wanted[:3])
    grad_loss = torch.zeros_like(kept.lse) if grad_loss is None else grad_loss
    gradients = _backward_op(grad_loss, grad_lse, chosen, kept)
    return tuple(g if want else None for g, want in zip(gradients, chosen, strict=True))


tokens_op = define(
    "linear_cross_entropy",
    LinearCrossEntropyCall,
    forward,
    keeps=LinearCrossEntropyKept,
    backward=_differentiate,
    auxiliary=1,
)


def forward_with_gradients(call: LinearCrossEntropySumCall) -> tuple[Tensor, ...]:
    wanted, tokens = call
    hidden = tokens.hidden
    ones = hidden.new_ones((), dtype=wide_dtype(hidden.dtype)).expand(tokens.target.shape)
    loss, lse, correct, gradients = linear_chunks.sweep(tokens, grad_loss=ones, wanted=wanted)
    return (
        loss.sum(),
        lse,
        correct,
        *(
            hidden.new_empty(0, dtype=dtype) if g is None else g
            for g, dtype in zip(gradients, call.dtypes, strict=True)
        ),
    )


sum_op = define_with_gradients("linear_cross_entropy_sum", LinearCrossEntropySumCall, forward_with_gradients, beside=2)
