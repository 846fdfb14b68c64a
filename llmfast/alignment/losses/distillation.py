"""Distillation: how far a student's next-token distributions are from a teacher's, token by token."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.kernels import linear_cross_entropy, linear_kl_divergence

Kind = Literal["forward", "reverse", "js"]


def divergences(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    targets: Tensor,
    *,
    kind: Kind = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """τ² times each token's divergence (B, S), 0 where ``targets`` is −100; see ``kernels.linear_kl_divergence``.

    τ² keeps the size of the gradient where the temperature rises (Hinton et al. 2015, section 2).

    Args:
        student, teacher: last hidden states (B, S, E), each of its own width.
        student_weight, teacher_weight: output heads (V, E). Rows that only fill up a table must be cut off.
        targets: (B, S).
        kind, beta, temperature: of the divergence.
    """
    losses = linear_kl_divergence(
        student,
        student_weight,
        teacher,
        teacher_weight,
        targets,
        kind=kind,
        beta=beta,
        temperature=temperature,
        reduction="none",
    )
    return temperature**2 * losses


def top_k_divergences(
    student: Tensor,
    student_weight: Tensor,
    tokens: Tensor,
    log_probabilities: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """τ²·KL(p_T ‖ p_S) of each token (B, S), of a teacher whose k likeliest tokens are known; 0 where ignored.

    What is left of the teacher's probability is one more class, and so is that of the student: a lower bound of the
    divergence of the whole distributions, equal where k is the vocabulary.

    Args:
        student: (B, S, E), last hidden states.
        student_weight: (V, E).
        tokens: (B, S, k) int64, the teacher's likeliest tokens.
        log_probabilities: (B, S, k), of them, at the temperature.
        targets: (B, S), −100 where a token does not count.
        temperature: τ.
    """
    student = student / temperature  # logits are linear in the states
    counted = targets != -100
    picked = torch.where(counted, targets, 0)
    _, lse = linear_cross_entropy(student, student_weight, picked, reduction="none", return_lse=True)
    rows = F.embedding(tokens, student_weight)
    known = torch.einsum("bse,bske->bsk", student, rows.to(student.dtype)).to(lse.dtype) - lse.unsqueeze(-1)
    teacher = log_probabilities.to(known.dtype)
    rest = _log_rest(teacher)
    inner = (teacher.exp() * (teacher - known)).sum(-1)
    # Where the teacher has nothing left, the last class counts nothing.
    has_rest = rest > -30
    outer = torch.where(has_rest, rest.exp() * (rest - _log_rest(known)), 0)
    return temperature**2 * torch.where(counted, inner + outer, 0)


def _log_rest(log_probabilities: Tensor) -> Tensor:
    """The logarithm of what probabilities (..., k) leave to the other tokens, at least that of a rounding error."""
    rest = 1 - log_probabilities.exp().sum(-1)
    return rest.clamp(min=torch.finfo(rest.dtype).eps).log()
