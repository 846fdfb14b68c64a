"""Divergences between a student's and a teacher's next-token distributions."""

import torch
from torch import Tensor

from .dtypes import widen

FARTHEST = 80.0  # log-probabilities farther apart belong to probabilities of 0, and exp of more overflows


def log_ratio(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """``log(p / (share·q + (1 − share)·p))``, exact also where p and q are close."""
    return -torch.log1p(share * torch.expm1((log_q - log_p).clamp(-FARTHEST, FARTHEST)))


def expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """``Σ p·values``, a term with p = 0 being 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * values, 0).sum(-1)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (widen(logits) / temperature).log_softmax(-1)


def kl_divergence(student: Tensor, teacher: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    """The divergence of each row of logits (..., V)."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    if kind == "forward":
        return expectation(log_t, log_t - log_s)
    if kind == "reverse":
        return expectation(log_s, log_s - log_t)
    from_teacher = expectation(log_t, log_ratio(log_t, log_s, 1 - beta))
    return beta * from_teacher + (1 - beta) * expectation(log_s, log_ratio(log_s, log_t, beta))


def kl_gradient(student: Tensor, teacher: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    """The derivative of ``kl_divergence`` by ``student``."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    p = log_s.exp()
    if kind == "forward":
        return (p - log_t.exp()) / temperature
    values = log_s - log_t if kind == "reverse" else (1 - beta) * log_ratio(log_s, log_t, beta)
    centred = values - expectation(log_s, values).unsqueeze(-1)
    return torch.where(p > 0, p * centred / temperature, 0)
