"""The operators of ``linear_kl_divergence``: what they are called with, the passes over the tokens, the derivatives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import wide_dtype
from ..frame.launch import cdiv, run
from ..frame.operator import define, define_with_gradients
from . import reference
from .counted_tokens import CountedTokens
from .kl_kernels import kl_backward, kl_forward
from .launch import KL_WARPS, kl_block
from .linear_chunks import add_product, blocks_in_cache, chunk_rows


class LinearKLCall(NamedTuple):
    student_hidden: Tensor  # (N, E)
    student_weight: Tensor  # (V, E)
    teacher_hidden: Tensor  # (N, E of the teacher)
    teacher_weight: Tensor  # (V, E of the teacher)
    target: Tensor | None  # (N,)
    ignore_index: int
    kind: str
    beta: float
    temperature: float
    kernels: bool  # or the definitions

    @property
    def measure(self) -> tuple[str, float, float]:
        return self.kind, self.beta, self.temperature

    def allocate(self) -> Tensor:
        """The loss of each token."""
        hidden = self.student_hidden
        return hidden.new_empty(hidden.shape[0], dtype=wide_dtype(hidden.dtype))

    def allocate_gradients(self, wanted: Sequence[bool], weight_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        hidden, weight = self.student_hidden, self.student_weight
        grad_hidden = hidden.new_empty(hidden.shape if wanted[0] else 0)
        return grad_hidden, hidden.new_empty(weight.shape if wanted[1] else 0, dtype=weight_dtype)


class LinearKLBackwardCall(NamedTuple):
    grad_loss: Tensor
    wanted: list[bool]  # of the student's hidden states and weight
    call: LinearKLCall

    def allocate(self) -> tuple[Tensor, Tensor]:
        return self.call.allocate_gradients(self.wanted, self.call.student_weight.dtype)


class LinearKLSumCall(NamedTuple):
    """The sum of all tokens' losses with its gradients, in one pass."""

    wanted: list[bool]  # of the student's hidden states and weight
    call: LinearKLCall

    def allocate(self) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.call.student_hidden
        wide = wide_dtype(hidden.dtype)
        return hidden.new_empty((), dtype=wide), *self.call.allocate_gradients(self.wanted, wide)


# ------------------------------------------------------------------------------------------------ the passes


def logits_of(call: LinearKLCall, some: slice | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The student's and the teacher's logits of some tokens, and their targets."""
    student = F.linear(call.student_hidden[some], call.student_weight)
    teacher = F.linear(call.teacher_hidden[some], call.teacher_weight)
    return student, teacher, None if call.target is None else call.target[some]


def run_rows(kernel, columns: int, call: LinearKLCall, student: Tensor, *rest: Tensor | None) -> None:
    """Launches ``kernel`` on each row of logits and ``columns`` blocks of classes."""
    rows, vocabulary = student.shape
    run(
        kernel,
        (rows, columns),
        student,
        *(student, *rest, rows, vocabulary, call.ignore_index, call.beta, call.temperature),
        KIND=call.kind,
        BLOCK=kl_block(vocabulary),
        num_warps=KL_WARPS,
    )


def row_losses(
    call: LinearKLCall, student: Tensor, teacher: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row of logits, and what the kernels compute its gradient from."""
    if not call.kernels:
        blocks = blocks_in_cache(student)
        loss = torch.cat([reference.kl_divergence(student[some], teacher[some], *call.measure) for some in blocks])
        return loss if target is None else torch.where(target == call.ignore_index, 0, loss), None
    loss = student.new_empty(student.shape[0], dtype=torch.float32)
    statistics = student.new_empty((5, student.shape[0]), dtype=torch.float32)
    run_rows(kl_forward, 1, call, student, teacher, target, loss, statistics)
    return loss, statistics


def row_gradients(
    call: LinearKLCall,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    grad_loss: Tensor,
    statistics: Tensor | None,
) -> Tensor:
    """The gradient of the student's logits, in their dtype and their place."""
    if not call.kernels:
        for some in blocks_in_cache(student):
            gradient = reference.kl_gradient(student[some], teacher[some], *call.measure)
            student[some] = gradient * grad_loss[some].unsqueeze(-1)
        if target is not None:
            student.masked_fill_((target == call.ignore_index).unsqueeze(-1), 0)
        return student
    blocks = cdiv(student.shape[1], kl_block(student.shape[1]))
    run_rows(kl_backward, blocks, call, student, teacher, target, grad_loss.contiguous(), statistics)
    return student


def sweep(
    call: LinearKLCall, grad_loss: Tensor | None = None, wanted: Sequence[bool] = (False, False)
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tokens: the loss of each (N,) and, with ``grad_loss`` (N,), the gradients of the student's
    hidden states and of its head that are wanted (empty where not), the latter in float32."""
    hidden, weight = call[:2]
    counted = CountedTokens(hidden.shape[0], call.target, call.ignore_index)
    loss = call.allocate().zero_()
    grad_hidden = hidden.new_zeros(hidden.shape if wanted[0] else 0)
    grad_weight = hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=loss.dtype)
    on_cpu = hidden.device.type == "cpu"
    rows = chunk_rows(2 * weight.shape[0], weight.shape[1], hidden.itemsize, on_cpu)
    # The operands are in their dtype already: autocast must not narrow the float32 sums.
    with torch.autocast(hidden.device.type, enabled=False):
        for some in counted.chunks(rows):
            student, teacher, target = logits_of(call, some)
            loss[some], statistics = row_losses(call, student, teacher, target)
            if not any(wanted):
                continue
            gradients = row_gradients(call, student, teacher, target, grad_loss[some], statistics)
            if wanted[0]:
                grad_hidden[some] = gradients @ weight
            if wanted[1]:
                add_product(grad_weight, gradients.T, hidden[some])
    return loss, grad_hidden, grad_weight


# ------------------------------------------------------------------------------------------------- operators


def forward(call: LinearKLCall) -> Tensor:
    return sweep(call)[0]


def backward(call: LinearKLBackwardCall) -> tuple[Tensor, Tensor]:
    grad_loss, wanted, forward_call = call
    _, grad_hidden, grad_weight = sweep(forward_call, grad_loss, wanted)
    return grad_hidden, grad_weight.to(forward_call.student_weight.dtype)


_backward_op = define("linear_kl_divergence_backward", LinearKLBackwardCall, backward)


def _differentiate(call: LinearKLCall, wanted, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    chosen = list(wanted[:2])
    gradients = _backward_op(grad_loss, chosen, call)
    return tuple(g if want else None for g, want in zip(gradients, chosen, strict=True))


tokens_op = define("linear_kl_divergence", LinearKLCall, forward, backward=_differentiate)


def forward_with_gradients(call: LinearKLSumCall) -> tuple[Tensor, Tensor, Tensor]:
    wanted, tokens = call
    hidden = tokens.student_hidden
    ones = hidden.new_ones((), dtype=wide_dtype(hidden.dtype))
    loss, grad_hidden, grad_weight = sweep(tokens, ones.expand(hidden.shape[0]), wanted)
    return loss.sum(), grad_hidden, grad_weight


sum_op = define_with_gradients("linear_kl_divergence_sum", LinearKLSumCall, forward_with_gradients)
