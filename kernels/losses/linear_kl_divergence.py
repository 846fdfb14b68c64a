"""Distillation: the divergence between a student's and a teacher's next-token distributions, from their hidden
states and heads, whose logits (N, V) never exist.

With log p_S and log p_T the log-softmax of the logits over the temperature τ, and M = β·p_T + (1 − β)·p_S, a
token's loss and its derivative by the student's logits are

    forward   KL(p_T ‖ p_S)                            (p_S − p_T) / τ
    reverse   KL(p_S ‖ p_T)                            p_S·(log p_S − log p_T − KL(p_S ‖ p_T)) / τ
    js        β·KL(p_T ‖ M) + (1 − β)·KL(p_S ‖ M)      (1 − β)·p_S·(log p_S − log M − KL(p_S ‖ M)) / τ

The tokens go by in chunks (``linear_chunks``): the logits of a chunk are two matrix products, and one kernel
reads them. From the gradient of the student's logits, written in their place, two more products give those of its
hidden states and of its head, which is summed over the chunks in float32 (``linear_chunks.add_product``). Where the
loss of all tokens is one number that happens in the same pass, four products in all; where each token's loss is asked
for, the backward pass computes the logits a second time.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import is_transformed, use_triton
from ..frame.checks import as_integer, check_choice, check_floating, check_same_device, check_same_dtype
from . import reference
from .checks import REDUCTIONS, check_target
from .launch import FEW_LOGITS
from .linear_kl_divergence_ops import LinearKLCall, sum_op, tokens_op

KINDS = ("forward", "reverse", "js")


def linear_kl_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    kind: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """The divergence of a student's next-token distribution p_S from a teacher's p_T, without their logits.

    With ``p = softmax(hidden @ weightᵀ / temperature)``, each token's loss is

    - ``"forward"``: KL(p_T ‖ p_S) (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2)
    - ``"reverse"``: KL(p_S ‖ p_T) (MiniLLM, arXiv:2306.08543)
    - ``"js"``: β·KL(p_T ‖ M) + (1 − β)·KL(p_S ‖ M) with M = β·p_T + (1 − β)·p_S (generalized Jensen-Shannon;
      GKD, arXiv:2306.13649, section 2)

    in float32 (float64 for float64). The temperature's square, by which Hinton multiplies the loss, is left to the
    caller. Gradients reach the student's hidden states and head; the teacher gets none.

    Memory beside the inputs and the gradients: a float32 copy of the head's gradient, a copy of the hidden states'
    gradient, and a workspace of 256 MiB or half of the student's head. Tokens that are ignored cost nothing, but for a
    CPU where logits are few (1 MiB): with a target, the host waits once a call to hear how many count; into a CUDA
    graph all are captured.

    Args:
        student_hidden: (..., E), any floating dtype. Under autocast the four tensors are cast as for
            ``torch.nn.functional.linear``.
        student_weight: (V, E).
        teacher_hidden: (..., E of the teacher), the same tokens.
        teacher_weight: (V, E of the teacher), the same vocabulary.
        target: (...), integers of which only ``ignore_index`` matters: such tokens count nothing. None: all count.
        kind: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: the teacher's share of M, between 0 and 1; ``"js"`` only.
        temperature: τ, positive.
        reduction: ``"mean"`` over the tokens that count (0 where none does), ``"sum"``, or ``"none"`` for each
            token's loss (...), 0 where ignored.

    Raises:
        ValueError: for a shape, dtype, device or option that does not fit.

    Example::

        student = torch.nn.Sequential(torch.nn.Embedding(1000, 32), torch.nn.Linear(32, 1000, bias=False))
        teacher = torch.nn.Sequential(torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 1000, bias=False))
        tokens = torch.randint(1000, (4, 128))
        hidden = student[0](tokens), teacher[0](tokens).detach()
        loss = linear_kl_divergence(hidden[0], student[1].weight, hidden[1], teacher[1].weight, temperature=2.0)
        loss.backward()
    """
    target = _check(student_hidden, student_weight, teacher_hidden, teacher_weight, target)
    ignore_index = as_integer("ignore_index", ignore_index)
    check_choice("kind", kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must be between 0 and 1, both excluded, got {beta}")
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    tensors = autocast(student_hidden, student_weight, teacher_hidden.detach(), teacher_weight.detach())
    kernels = use_triton(*tensors)
    tokens, vocabulary = student_hidden[..., 0].numel(), student_weight.shape[0]
    hidden, weight, teacher_rows, teacher_head = (t.reshape(-1, t.shape[-1]) for t in tensors)
    flat = None if target is None else target.reshape(-1)
    if not kernels and (tokens * vocabulary * hidden.itemsize <= FEW_LOGITS or is_transformed()):
        if flat is not None:  # Rows that are ignored may hold anything; times 0, infinities would be NaN.
            ignored = (flat == ignore_index).unsqueeze(-1)
            hidden, teacher_rows = hidden.masked_fill(ignored, 0), teacher_rows.masked_fill(ignored, 0)
        logits = F.linear(hidden, weight), F.linear(teacher_rows, teacher_head)
        loss = reference.kl_divergence(*logits, kind, beta, temperature)
        loss = loss if flat is None else torch.where(flat == ignore_index, 0, loss)
    else:
        call = LinearKLCall(
            hidden, weight, teacher_rows, teacher_head, flat, ignore_index, kind, beta, temperature, kernels
        )
        wanted = [torch.is_grad_enabled() and p.requires_grad for p in call[:2]]
        summed = any(wanted) and reduction != "none"
        loss = sum_op(wanted, call)[0] if summed else tokens_op(*call)
    if reduction == "none":
        return loss.view(student_hidden.shape[:-1])
    if target is None:
        counted = loss.new_ones(tokens)
    else:
        counted = (target != ignore_index).to(loss.dtype)
    return reference.reduce(loss, counted, reduction)


def _check(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None,
) -> Tensor | None:
    """Returns the target, see ``check_target``."""
    for who, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        check_floating(f"{who}_hidden", hidden)
        if hidden.dim() == 0 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
            raise ValueError(
                f"{who}_weight must be (V, E) for {who}_hidden (..., E), "
                f"got {tuple(weight.shape)} for {tuple(hidden.shape)}"
            )
        for name, tensor in ((f"{who}_hidden", hidden), (f"{who}_weight", weight)):
            check_same_device(name, tensor, student_hidden)
            check_same_dtype(name, tensor, "student_hidden", student_hidden)
    if teacher_hidden.shape[:-1] != student_hidden.shape[:-1]:
        raise ValueError(
            f"teacher_hidden must be of the student's tokens {tuple(student_hidden.shape[:-1])}, "
            f"got {tuple(teacher_hidden.shape)}"
        )
    if teacher_weight.shape[0] != student_weight.shape[0] or student_weight.shape[0] == 0:
        raise ValueError(
            f"teacher_weight must have the student's vocabulary, {student_weight.shape[0]} (at least 1), "
            f"got {teacher_weight.shape[0]}"
        )
    return None if target is None else check_target(target, student_hidden, "student_hidden")
