"""Root mean square and layer normalization, with the residual addition that comes before them.

    h = x + residual                          (h = x without a residual)
    y = (h − μ)/σ · (weight + weight_offset) + bias

over the last dimension, where for root mean square normalization μ = 0 and σ² = mean(h²) + ε, and for layer
normalization μ = mean(h) and σ² = mean((h − μ)²) + ε. One program normalizes one tile of whole rows, held in
registers; rows longer than that are read twice. Statistics are float32.

With x̂ = (h − μ)/σ and g = grad_y · (weight + weight_offset), the gradients are

    grad_h      = (g − x̂ · mean(g · x̂) − mean(g))/σ + grad of the new residual     (no mean(g) where μ = 0)
    grad_weight = Σ over rows of grad_y · x̂
    grad_bias   = Σ over rows of grad_y

The sums over rows: each program adds up its rows in float32, and ``sum_partials`` adds up the programs.
"""

from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import check_floating, check_number, check_parameter, check_same_shape
from . import reference
from .ops import norm_op


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root mean square normalization over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    ``y = h / sqrt(mean(h²) + eps) · (weight + weight_offset)`` with ``h = x + residual``, computed in float32
    and rounded once. Gradients reach x, weight and residual.

    Args:
        x: (..., E), any floating dtype, any strides.
        weight: (E,), or one row a head (H, D) for x (..., H, D). None is a weight of 1 (and no offset).
        eps: added to the mean square.
        weight_offset: 1.0 for Gemma, whose checkpoints hold ``weight − 1``.
        residual: the residual stream, shape of x, added before the norm.

    Returns:
        y, shape of x and dtype of h; with a residual ``(y, h)``, where h is the new residual, in the dtype
        that x and residual promote to.

    Raises:
        ValueError: for an integer x, or a weight or residual whose shape or device does not fit x.

    Example::

        class RMSNorm(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(width))

            def forward(self, x):
                return rms_norm(x, self.weight, eps=1e-6)
    """
    _check(x, weight, None, residual, eps)
    check_number("weight_offset", weight_offset)
    if use_triton(x, weight, residual):
        y, h, _ = norm_op(x, weight, None, residual, eps, weight_offset, False)
        return y if residual is None else (y, h)
    return reference.rms_norm(x, weight, eps, weight_offset, residual)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer normalization over the last dimension (Ba, Kiros and Hinton 2016, arXiv:1607.06450).

    ``y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias`` with ``h = x + residual`` and the biased
    variance, computed in float32 and rounded once. Gradients reach every tensor given.

    Args:
        x: (..., E), any floating dtype, any strides.
        weight, bias: (E,), or one row a head (H, D) for x (..., H, D). None is a weight of 1, a bias of 0.
        eps: added to the variance.
        residual: the residual stream, shape of x, added before the norm.

    Returns:
        y, shape of x and dtype of h; with a residual ``(y, h)``, where h is the new residual, in the dtype
        that x and residual promote to.

    Raises:
        ValueError: for an integer x, or a weight, bias or residual whose shape or device does not fit x.

    Example::

        class LayerNorm(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(width))
                self.bias = torch.nn.Parameter(torch.zeros(width))

            def forward(self, x):
                return layer_norm(x, self.weight, self.bias)
    """
    _check(x, weight, bias, residual, eps)
    if use_triton(x, weight, bias, residual):
        y, h, _ = norm_op(x, weight, bias, residual, eps, 0.0, True)
        return y if residual is None else (y, h)
    return reference.layer_norm(x, weight, bias, eps, residual)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float) -> None:
    check_floating("x", x)
    check_number("eps", eps, least=0.0)
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
        check_parameter(name, parameter, x)
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ValueError(f"bias must have the shape of weight {tuple(weight.shape)}, got {tuple(bias.shape)}")
    if residual is not None:
        check_same_shape("residual", residual, "x", x)
        check_parameter("residual", residual, x)
