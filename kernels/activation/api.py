"""SwiGLU, GeGLU and GELU: the activations of the feed-forward layer.

    swiglu: silu(gate) · up            silu(x) = x · sigmoid(x)
    geglu:  gelu(gate) · up            gelu(x) = x · Φ(x), or its approximation by tanh
    gelu:   gelu(x + bias)

computed in float32 and rounded once. The backward passes read the inputs again and keep nothing else:

    grad_gate = grad · up · act'(gate)      grad_up = grad · act(gate)
    grad_x = grad · gelu'(x + bias)         grad_bias = Σ over rows of grad_x

A program takes one block of columns of one row; where all tensors are contiguous, everything is one row. Only the
backward pass of a biased gelu walks down its columns, to add up the gradient of the bias.
"""

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import check_choice, check_floating, check_parameter, check_same_shape
from . import reference
from .ops import biased_op, gated_op

APPROXIMATIONS = {"none": "gelu", "tanh": "gelu_tanh"}  # of gelu, and their kinds


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``silu(gate) · up`` (Shazeer 2020, arXiv:2002.05202), computed in float32 and rounded once.

    Args:
        gate: (..., F), any floating dtype, any strides; or packed ``[gate | up]`` (..., 2F) where up is None.
        up: (..., F).

    Returns:
        (..., F), in the dtype that gate and up promote to. Neither input is ever overwritten.

    Raises:
        ValueError: for an integer gate, an odd packed width, or an up of another shape or device.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.gate_up = torch.nn.Linear(width, 2 * hidden, bias=False)
                self.down = torch.nn.Linear(hidden, width, bias=False)

            def forward(self, x):
                return self.down(swiglu(self.gate_up(x)))
    """
    return _gated(gate, up, "silu")


def geglu(gate: Tensor, up: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(gate) · up`` (Shazeer 2020, arXiv:2002.05202), computed in float32 and rounded once.

    Args:
        gate: (..., F), any floating dtype, any strides; or packed ``[gate | up]`` (..., 2F) where up is None.
        up: (..., F).
        approximate: "none" for the exact gelu, "tanh" for its approximation, as in ``torch.nn.functional.gelu``.

    Returns:
        (..., F), in the dtype that gate and up promote to. Neither input is ever overwritten.

    Raises:
        ValueError: for an integer gate, an odd packed width, an up of another shape or device, or any other
            approximation.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.gate, self.up = (torch.nn.Linear(width, hidden) for _ in range(2))

            def forward(self, x):
                return geglu(self.gate(x), self.up(x), approximate="tanh")
    """
    return _gated(gate, up, _gelu_kind(approximate))


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` (Hendrycks and Gimpel 2016, arXiv:1606.08415), computed in float32 and rounded once.

    With the bias in here, the linear layer before needs none, and its sum is not rounded in between.

    Args:
        x: (..., F), any floating dtype, any strides.
        bias: (F,).
        approximate: "none" for the exact gelu, "tanh" for its approximation, as in ``torch.nn.functional.gelu``.

    Returns:
        the shape and dtype of x.

    Raises:
        ValueError: for an integer x, a bias of another shape or device, or any other approximation.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

            def forward(self, x):
                return self.down(gelu(x @ self.up.weight.T, self.up.bias, approximate="tanh"))
    """
    check_floating("x", x)
    kind = _gelu_kind(approximate)
    if bias is not None:
        if bias.shape != x.shape[-1:]:
            raise ValueError(f"bias must have the shape {tuple(x.shape[-1:])}, got {tuple(bias.shape)}")
        check_parameter("bias", bias, x)
    if use_triton(x, bias):
        return biased_op(x, bias, kind)
    return reference.biased(x, bias, kind)


def _gelu_kind(approximate: str) -> str:
    check_choice("approximate", approximate, tuple(APPROXIMATIONS))
    return APPROXIMATIONS[approximate]


def _gated(gate: Tensor, up: Tensor | None, kind: str) -> Tensor:
    gate, up = _check_gated(gate, up)
    if use_triton(gate, up):
        return gated_op(gate, up, kind)
    return reference.gated(gate, up, kind)


def _check_gated(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor | None]:
    check_floating("gate", gate)
    if up is None:
        if gate.dim() == 0 or gate.shape[-1] % 2:
            raise ValueError(f"packed gate must have an even last dimension [gate | up], got {tuple(gate.shape)}")
        return gate, None
    check_same_shape("up", up, "gate", gate)
    check_parameter("up", up, gate)
    if up.dtype != gate.dtype:
        dtype = torch.promote_types(gate.dtype, up.dtype)
        gate, up = gate.to(dtype), up.to(dtype)
    return gate, up
