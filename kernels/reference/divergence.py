"""Divergences between a student's and a teacher's next-token distributions."""

import math

import torch
from torch import Tensor

from .dtypes import widen


def log_mixture(log_student: Tensor, log_teacher: Tensor, beta: float) -> Tensor:
    """``log(β·p_T + (1 − β)·p_S)`` of generalised Jensen-Shannon divergence."""
    return torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p ‖ q) = Σ p·(log p − log q)``, a term with p = 0 being 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (widen(logits) / temperature).log_softmax(-1)


def kl_divergence(student: Tensor, teacher: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    """The divergence of each row of logits (..., V)."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    if kind == "forward":
        return divergence(log_t, log_s)
    if kind == "reverse":
        return divergence(log_s, log_t)
    log_m = log_mixture(log_s, log_t, beta)
    return beta * divergence(log_t, log_m) + (1 - beta) * divergence(log_s, log_m)


def kl_gradient(student: Tensor, teacher: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    """The derivative of ``kl_divergence`` by ``student``."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    p = log_s.exp()
    if kind == "forward":
        return (p - log_t.exp()) / temperature
    factor, log_q = (1.0, log_t) if kind == "reverse" else (1 - beta, log_mixture(log_s, log_t, beta))
    centred = log_s - log_q - divergence(log_s, log_q).unsqueeze(-1)
    return torch.where(p > 0, factor / temperature * p * centred, 0)
