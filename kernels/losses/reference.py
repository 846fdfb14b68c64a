"""Cross entropy and distillation losses of each token; ``reduce`` makes one number of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import widen
from ..frame.fixed_order import tree_sum
from ..frame.invariance import is_batch_invariant

FARTHEST = 80.0  # log-probabilities farther apart belong to probabilities of 0, and exp of more overflows


def cap(z: Tensor, softcap: float | None) -> Tensor:
    """``softcap · tanh(z / softcap)``, which keeps every logit inside ±softcap."""
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def is_class(target: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """Which targets name one of the classes 0 ... V - 1."""
    return (target != ignore_index) & (target >= 0) & (target < vocabulary)


def is_predicted(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """1 for each token whose target is the first class with the largest logit, and else 0, in a dtype of losses."""
    right = (logits.detach().argmax(-1) == target) & is_class(target, ignore_index, logits.shape[-1])
    return right.to(widen(logits[..., :0]).dtype)


def token_weight(
    target: Tensor, weight: Tensor | None, ignore_index: int, vocabulary: int, dtype: torch.dtype
) -> Tensor:
    """What each token counts in a mean: its class's weight (1 without weights), and 0 where it has no class."""
    return _weight_of(target, is_class(target, ignore_index, vocabulary), weight, dtype)


def _weight_of(target: Tensor, known: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    if weight is None:
        return known.to(dtype)
    return torch.where(known, weight.to(dtype)[torch.where(known, target, 0)], 0)


def reduce(loss: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """The loss of all tokens from each token's; ``mean`` divides by the sum of ``counted``, 0 / 0 being 0."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    assert counted is not None, "a mean is over what counts"
    total = counted.sum()
    return loss.sum() / torch.where(total == 0, 1, total)


def log_softmax(z: Tensor) -> Tensor:
    if not is_batch_invariant():
        return z.log_softmax(-1)
    below = z - z.amax(-1, keepdim=True)
    return below - tree_sum(below.exp()).log().unsqueeze(-1)


def class_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """The sum over the classes of ``weight · values``."""
    if is_batch_invariant():
        return tree_sum(values if weight is None else values * weight)
    return values.sum(-1) if weight is None else values @ weight


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each token of ``logits`` (..., V); both 0 where it is ignored, and a loss of NaN
    where its target is no class. With ``classes``, how many there are in all, the logits are of a part of them, and a
    target outside of it adds its smoothing alone."""
    dtype = widen(logits[..., :0]).dtype
    valid, known = target != ignore_index, is_class(target, ignore_index, logits.shape[-1])
    # An ignored row may hold anything: infinities in it would turn its gradient, which is 0, into NaN.
    if logits.requires_grad and torch.is_grad_enabled():
        logits = logits.masked_fill(~valid.unsqueeze(-1), 0)
    z = cap(logits.double() if is_batch_invariant() else widen(logits), softcap)
    log_p = log_softmax(z)
    index = torch.where(known, target, 0).long().unsqueeze(-1)
    # Not ``gather``, whose gradient a compiler scatters into zeros of the logits' size, 12 bytes a logit.
    target_log_p = -F.nll_loss(log_p.flatten(0, -2), index.flatten(), reduction="none").view(target.shape)
    lse = z.gather(-1, index).squeeze(-1) - target_log_p
    w = None if weight is None else weight.to(z.dtype)
    counted = _weight_of(target, known, w, z.dtype)
    loss = (label_smoothing - 1) * counted * target_log_p
    if label_smoothing:
        loss = loss - label_smoothing / (classes or z.shape[-1]) * class_sum(log_p, w)
    if z_loss:
        loss = loss + z_loss * counted * lse.square()
    if classes is None:
        loss = loss + torch.where(valid & ~known, torch.nan, 0.0)
    return torch.where(valid, loss, 0).to(dtype), torch.where(valid, lse, 0).to(dtype)


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each token of ``logits`` (..., V), whose ``target`` (..., V) is probabilities."""
    dtype = widen(logits[..., :0]).dtype
    z = cap(logits.double() if is_batch_invariant() else widen(logits), softcap)
    log_p, q = log_softmax(z), target.to(z.dtype)
    if label_smoothing:
        q = (1 - label_smoothing) * q + label_smoothing / z.shape[-1]
    terms = torch.where(q == 0, 0, -q * log_p)
    loss = class_sum(terms, None if weight is None else weight.to(z.dtype))
    # A logit of −inf has no difference to its log-probability.
    best = z.argmax(-1, keepdim=True)
    lse = (z.gather(-1, best) - log_p.gather(-1, best)).squeeze(-1)
    if z_loss:
        loss = loss + z_loss * lse.square()
    return loss.to(dtype), lse.to(dtype)


def cross_entropy_gradient(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient_filter: float | None,
    weight_sum: Tensor | None = None,
    classes: int | None = None,
) -> Tensor:
    """The derivative of ``cross_entropy`` by ``logits`` (N, V), times ``grad_loss`` and ``grad_lse`` (N,).

    Where the logits are of a part of the ``classes``, ``weight_sum`` is the sum of all classes' weights."""
    z = cap(widen(logits), softcap)
    vocabulary = z.shape[-1]
    valid = target != ignore_index
    index = torch.where(is_class(target, ignore_index, vocabulary), target, 0).long().unsqueeze(-1)
    grad_loss = torch.where(valid, grad_loss, 0)
    at_target = grad_loss * token_weight(target, weight, ignore_index, vocabulary, z.dtype)
    along = at_target if not z_loss else at_target * (1 + 2 * z_loss * lse)
    gradient = (z - torch.where(valid, lse, torch.inf).unsqueeze(-1)).exp_()
    dropped = None if gradient_filter is None else (gradient < gradient_filter).scatter_(-1, index, False)
    if label_smoothing:
        w = gradient.new_ones(vocabulary) if weight is None else weight.to(z.dtype)
        everywhere = label_smoothing / (classes or vocabulary) * grad_loss
        along = along - label_smoothing * at_target + everywhere * (w.sum() if weight_sum is None else weight_sum)
        at_target = (1 - label_smoothing) * at_target
    if grad_lse is not None:
        along = along + grad_lse
    gradient *= along.unsqueeze(-1)
    if label_smoothing:
        gradient.addr_(everywhere, w, alpha=-1)
    gradient.scatter_add_(-1, index, -at_target.unsqueeze(-1))
    if dropped is not None:
        gradient.masked_fill_(dropped, 0)
    return gradient if softcap is None else gradient * (1 - (z / softcap).square())


# ------------------------------------ divergences between a student's and a teacher's distributions


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
    centered = values - expectation(log_s, values).unsqueeze(-1)
    return torch.where(p > 0, p * centered / temperature, 0)
