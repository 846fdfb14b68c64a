"""The options that the cross-entropy losses share, as operators take them and as kernels do."""

from typing import NamedTuple

from torch import Tensor


class LossOptions(NamedTuple):
    """As operators take them, beside the weights of the classes."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


class Asked(NamedTuple):
    """What is returned beside the loss."""

    lse: bool
    z_loss: bool
    token_accuracy: bool


class Objective(NamedTuple):
    """What is computed of the logits, as the kernels take it: None for a term that is left out."""

    weight: Tensor | None
    weight_sum: Tensor | None
    ignore_index: int
    label_smoothing: float | None
    z_loss: float | None
    softcap: float | None
    classes: int | None = None  # how many there are in all, where the logits are of a part of them

    @property
    def numbers(self) -> tuple[float | None, ...]:
        return self[2:]


def objective(
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Objective:
    """From the weights of the classes and the options."""
    weight = None if class_weight is None else class_weight.float().contiguous()
    weight_sum = weight.sum() if weight is not None and label_smoothing else None
    return Objective(weight, weight_sum, ignore_index, label_smoothing or None, z_loss or None, softcap)
