"""Argument checks and the reduction that the cross-entropy functions share."""

from torch import Tensor

from ..frame.checks import check_choice, check_floating, check_same_device
from . import reference

REDUCTIONS = ("mean", "sum", "none")


def check_target(target: Tensor, rows: Tensor, rows_name: str) -> None:
    if target.is_floating_point() or target.is_complex() or target.shape != rows.shape[:-1]:
        raise ValueError(
            f"target must hold integer class indices of shape {tuple(rows.shape[:-1])} "
            f"({rows_name} without its last dimension), got {target.dtype} of shape {tuple(target.shape)}"
        )
    check_same_device("target", target, rows)


def check_options(
    x: Tensor,
    vocabulary: int,
    class_weight_name: str,
    class_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap must be positive, or None for no cap, got {softcap}")
    if class_weight is not None:
        check_floating(class_weight_name, class_weight)
        check_same_device(class_weight_name, class_weight, x)
        if class_weight.shape != (vocabulary,):
            raise ValueError(
                f"{class_weight_name} must have one element a class, ({vocabulary},), got {tuple(class_weight.shape)}"
            )
        if class_weight.requires_grad:
            raise ValueError(f"{class_weight_name} gets no gradient: detach it")


def finish(
    loss: Tensor,
    lse: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    vocabulary: int,
    reduction: str,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """What the public functions return, from each token's loss and log-sum-exp."""
    counted = None
    if reduction == "mean":
        counted = reference.token_weight(target, class_weight, ignore_index, vocabulary, loss.dtype)
    loss = reference.reduce(loss, counted, reduction)
    return (loss, lse) if return_lse else loss
