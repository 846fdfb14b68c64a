"""Cross entropy of a linear layer's output, whose logits (N, V) never exist."""

import torch.nn.functional as F
from torch import Tensor

from .checks import check_floating, check_same_device
from .loss_checks import check_options, check_target, finish
from .reference import loss as definition


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    gradient_filter: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``cross_entropy(hidden @ weight.T + bias, target)``.

    Args:
        hidden: (..., E).
        weight: (V, E), in hidden's dtype.
        target: (...), integers in [0, V), or ``ignore_index``.
        bias: (V,), in hidden's dtype.

    The other arguments, and what is returned, are those of ``cross_entropy``.
    """
    _check(hidden, weight, bias)
    check_target(target, hidden, "hidden")
    check_options(hidden, weight.shape[0], "class_weight", class_weight, reduction, label_smoothing, softcap)
    logits = F.linear(hidden, weight, bias)
    loss, lse = definition.cross_entropy(
        logits, target, class_weight, ignore_index, label_smoothing, z_loss, softcap
    )
    return finish(loss, lse, target, class_weight, ignore_index, reduction, return_lse)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating("hidden", hidden)
    if hidden.dim() == 0 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be (V, E) for hidden (..., E), got {tuple(weight.shape)} for {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be (V,), ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_same_device(name, tensor, hidden)
