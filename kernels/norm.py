"""Root mean square and layer normalisation, with the residual addition that comes before them."""

from torch import Tensor

from .checks import check_floating, check_same_device, check_same_shape
from .reference import norm as definition


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root mean square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    _check(x, weight, None, residual)
    return definition.rms_norm(x, weight, eps, weight_offset, residual)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer normalisation over the last dimension (Ba, Kiros and Hinton, 2016, arXiv:1607.06450)."""
    _check(x, weight, bias, residual)
    return definition.layer_norm(x, weight, bias, eps, residual)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> None:
    check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if parameter.dim() not in (1, 2) or parameter.shape != x.shape[-parameter.dim() :]:
            raise ValueError(
                f"{name} must have the shape of the last one or two dimensions of x, {tuple(x.shape)}, "
                f"got {tuple(parameter.shape)}"
            )
        check_same_device(name, parameter, x)
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ValueError(f"bias must have the shape of weight {tuple(weight.shape)}, got {tuple(bias.shape)}")
    if residual is not None:
        check_same_shape("residual", residual, "x", x)
        check_same_device("residual", residual, x)
