"""Cross entropy and distillation losses of each token; ``reduce`` makes one number of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import cast, wide_dtype, widen
from ..frame.fixed_order import tree_sum
from ..frame.invariance import is_batch_invariant

FARTHEST = 80.0  # log-probabilities farther apart belong to probabilities of 0, and exp of more overflows


def cap(z: Tensor, softcap: float | None) -> Tensor:
    """``softcap · tanh(z / softcap)``, which keeps every logit inside ±softcap."""
    return z if softcap is None else softcap * torch.tanh(z / softcap)


class Classes(NamedTuple):
    """The classes that targets name."""

    index: Tensor  # int64, of a class also where the target names none
    known: Tensor  # which targets name one


def classes_of(target: Tensor, ignore_index: int, vocabulary: int) -> Classes:
    """Which of the classes 0 ... V - 1 each target names."""
    target = target.long()
    index = target.clamp(0, vocabulary - 1)
    known = index == target
    return Classes(index, known & (target != ignore_index) if 0 <= ignore_index < vocabulary else known)


def is_class(target: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """Which targets name one of the classes 0 ... V - 1."""
    return classes_of(target, ignore_index, vocabulary).known


def is_predicted(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """1 for each token whose target is the first class with the largest logit, and else 0, in a dtype of losses."""
    right = (logits.detach().argmax(-1) == target) & (target != ignore_index)
    return right.to(wide_dtype(logits.dtype))


def token_weight(
    target: Tensor, weight: Tensor | None, ignore_index: int, vocabulary: int, dtype: torch.dtype
) -> Tensor:
    """What each token counts in a mean: its class's weight (1 without weights), and 0 where it has no class."""
    return class_weight_of(classes_of(target, ignore_index, vocabulary), weight, dtype)


def class_weight_of(classes: Classes, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``token_weight`` of targets whose classes are known."""
    if weight is None:
        return classes.known.to(dtype)
    return weight.to(dtype)[classes.index].masked_fill(~classes.known, 0)


def reduce(loss: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """The loss of all tokens from each token's; ``mean`` divides by the sum of ``counted``, 0 / 0 being 0."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    assert counted is not None, "a mean is over what counts"
    total = counted.sum()
    return loss.sum() / (total + (total == 0))


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
    *,
    vocabulary: int | None = None,
    classes: Classes | None = None,
    with_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each token of ``logits`` (..., V); both 0 where it is ignored, and a loss of NaN
    where its target is no class.

    With ``vocabulary``, how many classes there are in all, the logits are of a part of them, and a target outside of it
    adds its smoothing alone. ``classes`` are those of the targets, where the caller has them already. Without
    ``with_lse`` the log-sum-exp is empty.
    """
    dtype = wide_dtype(logits.dtype)
    classes = classes or classes_of(target, ignore_index, logits.shape[-1])
    index, ignored = classes.index, target == ignore_index
    # An ignored row may hold anything: infinities in it would turn its gradient, which is 0, into NaN.
    if logits.requires_grad and torch.is_grad_enabled():
        logits = logits.masked_fill(ignored.unsqueeze(-1), 0)
    z = cap(logits.double() if is_batch_invariant() else widen(logits), softcap)
    log_p = log_softmax(z)
    # Not ``gather``, whose gradient a compiler scatters into zeros of the logits' size, 12 bytes a logit.
    loss = F.nll_loss(log_p.reshape(-1, log_p.shape[-1]), index.reshape(-1), reduction="none").view(target.shape)
    lse = loss.new_empty(0)
    if with_lse or z_loss:
        lse = z.gather(-1, index.unsqueeze(-1)).squeeze(-1) + loss
    w = None if weight is None else weight.to(z.dtype)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss
    if z_loss:
        loss = loss + z_loss * lse.square()
    if w is not None:
        loss = loss * w[index]
    loss = loss.masked_fill(~classes.known, torch.nan if vocabulary is None else 0)
    if label_smoothing:
        loss = loss - label_smoothing / (vocabulary or z.shape[-1]) * class_sum(log_p, w)
    loss = cast(loss.masked_fill(ignored, 0), dtype)
    return loss, cast(lse.masked_fill(ignored, 0), dtype) if with_lse else lse


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each token of ``logits`` (..., V), whose ``target`` (..., V) is probabilities."""
    dtype = wide_dtype(logits.dtype)
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
    vocabulary: int | None = None,
) -> Tensor:
    """The derivative of ``cross_entropy`` by ``logits`` (N, V), times ``grad_loss`` and ``grad_lse`` (N,).

    Where the logits are of a part of the ``vocabulary``, ``weight_sum`` is the sum of all classes' weights."""
    z = cap(widen(logits), softcap)
    width = z.shape[-1]
    valid = target != ignore_index
    classes = classes_of(target, ignore_index, width)
    index = classes.index.unsqueeze(-1)
    grad_loss = torch.where(valid, grad_loss, 0)
    at_target = grad_loss * class_weight_of(classes, weight, z.dtype)
    along = at_target if not z_loss else at_target * (1 + 2 * z_loss * lse)
    gradient = (z - torch.where(valid, lse, torch.inf).unsqueeze(-1)).exp_()
    dropped = None if gradient_filter is None else (gradient < gradient_filter).scatter_(-1, index, False)
    if label_smoothing:
        w = gradient.new_ones(width) if weight is None else weight.to(z.dtype)
        everywhere = label_smoothing / (vocabulary or width) * grad_loss
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
