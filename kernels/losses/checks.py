"""Argument checks and the reduction that the cross-entropy functions share."""

import math

import torch
from torch import Tensor

from ..frame.checks import as_integer, check_choice, check_number, check_parameter, check_same_device
from ..frame.dtypes import cast
from . import reference
from .objective import Asked, LossOptions

REDUCTIONS = ("mean", "sum", "none")


def check_target(target: Tensor, rows: Tensor, rows_name: str) -> Tensor:
    """Returns the target in int64, which holds every ``ignore_index``: beside uint8, PyTorch takes -100 for 156."""
    if target.is_floating_point() or target.is_complex() or target.shape != rows.shape[:-1]:
        raise ValueError(
            f"target must hold integer class indices of shape {tuple(rows.shape[:-1])} "
            f"({rows_name} without its last dimension), got {target.dtype} of shape {tuple(target.shape)}"
        )
    check_same_device("target", target, rows)
    return cast(target, torch.int64)


def check_soft_target(target: Tensor, logits: Tensor, ignore_index: int, return_token_accuracy: bool) -> None:
    if target.shape != logits.shape:
        raise ValueError(
            f"target must hold probabilities of the shape of logits {tuple(logits.shape)}, or integer class indices of "
            f"shape {tuple(logits.shape[:-1])}, got {target.dtype} of shape {tuple(target.shape)}"
        )
    check_same_device("target", target, logits)
    if target.requires_grad:
        raise ValueError("target gets no gradient: detach it")
    if ignore_index >= 0:
        raise ValueError(f"ignore_index is of integer targets: with probabilities, leave it out, got {ignore_index}")
    if return_token_accuracy:
        raise ValueError("return_token_accuracy is of integer targets: probabilities name no one class")


def check_options(
    x: Tensor,
    vocabulary: int,
    class_weight_name: str,
    class_weight: Tensor | None,
    reduction: str,
    options: LossOptions,
) -> LossOptions:
    """Returns the options, ``ignore_index`` as an int."""
    ignore_index, label_smoothing, z_loss, softcap = options
    check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    check_number("z_loss", z_loss)
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, or None for no cap, got {softcap}")
    if class_weight is not None:
        check_parameter(class_weight_name, class_weight, x)
        if class_weight.shape != (vocabulary,):
            raise ValueError(
                f"{class_weight_name} must have one element a class, ({vocabulary},), got {tuple(class_weight.shape)}"
            )
        if class_weight.requires_grad:
            raise ValueError(f"{class_weight_name} gets no gradient: detach it")
    return LossOptions(as_integer("ignore_index", ignore_index), label_smoothing, z_loss, softcap)


def finish(
    loss: Tensor,
    lse: Tensor,
    correct: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    vocabulary: int,
    reduction: str,
    options: LossOptions,
    asked: Asked,
    *,
    reduced: bool = False,
    classes: reference.Classes | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """What the public functions return, from the loss of each token or the sum of all (or what is to be returned, where
    it is ``reduced`` already), and each token's log-sum-exp and prediction (see ``reference.is_predicted``).
    ``classes`` are those of the targets, where the caller has them already."""
    beside = [lse] if asked.lse else []
    if (reduction == "mean" and not reduced) or asked.z_loss or asked.token_accuracy:
        classes = classes or reference.classes_of(target, options.ignore_index, vocabulary)
        known = classes.known
        counted = known if class_weight is None else reference.class_weight_of(classes, class_weight, loss.dtype)
        loss = loss if reduced else reference.reduce(loss, counted, reduction)
        if asked.z_loss:
            beside.append(reference.reduce(counted * lse.detach().square() * options.z_loss, counted, reduction))
        if asked.token_accuracy:
            beside.append(correct if reduction == "none" else reference.reduce(correct, known, "mean"))
    elif not reduced:
        loss = reference.reduce(loss, None, reduction)
    return (loss, *beside) if beside else loss


def finish_soft(loss: Tensor, lse: Tensor, reduction: str, z_loss: float, asked: Asked) -> Tensor | tuple[Tensor, ...]:
    """As ``finish``, where targets are probabilities: every token counts 1."""
    counted = torch.ones_like(lse)
    beside = [lse] if asked.lse else []
    if asked.z_loss:
        beside.append(reference.reduce(z_loss * lse.detach().square(), counted, reduction))
    loss = reference.reduce(loss, counted, reduction)
    return (loss, *beside) if beside else loss
