"""SwiGLU, GeGLU and GELU: the activations of the feed-forward layer."""

from torch import Tensor

from .checks import check_choice, check_floating, check_same_device, check_same_shape
from .reference import activation as definition

APPROXIMATIONS = ("none", "tanh")


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``silu(gate) · up`` (Shazeer, 2020, arXiv:2002.05202)."""
    _check_gated(gate, up)
    return definition.swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(gate) · up`` (Shazeer, 2020, arXiv:2002.05202)."""
    _check_gated(gate, up)
    check_choice("approximate", approximate, APPROXIMATIONS)
    return definition.geglu(gate, up, approximate)


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    check_floating("x", x)
    check_choice("approximate", approximate, APPROXIMATIONS)
    if bias is not None:
        if bias.shape != x.shape[-1:]:
            raise ValueError(f"bias must have the shape {tuple(x.shape[-1:])}, got {tuple(bias.shape)}")
        check_same_device("bias", bias, x)
    return definition.gelu(x, bias, approximate)


def _check_gated(gate: Tensor, up: Tensor | None) -> None:
    check_floating("gate", gate)
    if up is not None:
        check_same_shape("up", up, "gate", gate)
        check_same_device("up", up, gate)
    elif gate.dim() == 0 or gate.shape[-1] % 2:
        raise ValueError(f"packed gate must have an even last dimension [gate | up], got {tuple(gate.shape)}")
