"""A linear layer on a frozen weight in 8 bits, one scale a row.

    y = x · (codes · scale)ᵀ + bias

The same three ways as for 4 bits (``nf4/products.py``): a kernel that streams the weight once, for up to 16 tokens;
one on tiles of a matrix product; and a workspace of the decoded weight with the BLAS library.
"""

import torch
from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import use_triton
from ..frame.checks import check_floating, check_parameter, check_same_device
from . import reference
from .ops import linear_op


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (N, K) in 8 bits a number: (codes int8 (N, K), scale float32 (N,)), ``weight ≈ codes · scale``.

    The error of a number is at most half of its row's scale, which is the row's largest absolute number / 127.

    Raises:
        ValueError: for what is no floating-point matrix.
    """
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be (N, K), got {tuple(weight.shape)}")
    return reference.quantize(weight.detach())


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ (codes · scale)ᵀ + bias`` on a weight in 8 bits, which is frozen; gradients reach x and bias.

    Args:
        x: (..., K), any floating dtype; computing and the result are in its dtype. Under autocast it is cast as for
            ``torch.nn.functional.linear``.
        codes: int8 (N, K), and scale: float32 (N,), from ``quantize_int8``.
        bias: (N,).

    Raises:
        ValueError: for a shape, dtype or device that does not fit.

    Example::

        codes, scale = quantize_int8(torch.randn(256, 128) / 16)
        y = int8_linear(torch.randn(4, 10, 128), codes, scale)
    """
    check_floating("x", x)
    if codes.dtype != torch.int8 or codes.dim() != 2 or x.dim() == 0 or codes.shape[1] != x.shape[-1]:
        raise ValueError(
            f"codes must be torch.int8 (N, K) for x (..., K), got {codes.dtype} {tuple(codes.shape)} "
            f"for {tuple(x.shape)}"
        )
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and tensor.shape != codes.shape[:1]:
            raise ValueError(f"{name} must have one element a row, ({len(codes)},), got {tuple(tensor.shape)}")
        check_parameter(name, tensor, x)
    check_same_device("codes", codes, x)
    x, bias = autocast(x, bias)
    rows = x.reshape(-1, x.shape[-1])
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    y = linear_op(rows, codes, scale.float().contiguous(), bias, use_triton(x))
    return y.view(*x.shape[:-1], codes.shape[0])
