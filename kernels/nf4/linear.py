"""A linear layer on a frozen weight, 4-bit or not, with a low-rank adapter that trains.

    y = x · Wᵀ + bias + lora_scale · (x · Aᵀ) · Bᵀ

W gets no gradient. With G the gradient of y, and U = G · B,

    grad_x = G · W + lora_scale · U · A      grad_A = lora_scale · Uᵀ · x      grad_B = lora_scale · Gᵀ · (x · Aᵀ)

Nothing decoded is kept for the backward pass, which decodes again.
"""

from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import use_triton
from ..frame.checks import check_floating, check_number, check_parameter, check_same_device, check_same_dtype
from ..frame.launch import contiguous
from .layout import NOT_PACKED, LayoutArguments
from .ops import FrozenLayer, linear_op
from .tensor import NF4Tensor

Weight = Tensor | NF4Tensor


def nf4_linear(
    x: Tensor,
    w: NF4Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
) -> Tensor:
    """``x @ wᵀ + bias + lora_scale · (x @ lora_aᵀ) @ lora_bᵀ`` on a 4-bit weight (QLoRA, arXiv:2305.14314).

    Gradients reach x, bias, lora_a and lora_b; the weight is frozen. No decoded weight outlives the call: the
    backward pass decodes again.

    Args:
        x: (..., K), any floating dtype and strides; computing and the result are in its dtype. Under autocast it is
            cast as for ``torch.nn.functional.linear``.
        w: (N, K), from ``quantize_nf4`` or ``from_bitsandbytes``.
        bias: (N,).
        lora_a: (R, K), and lora_b: (N, R), both or neither; any floating dtype, cast to x's.
        lora_scale: α / R in the paper on adapters (arXiv:2106.09685).

    Raises:
        ValueError: for a shape or device that does not fit.

    Example::

        w = quantize_nf4(torch.randn(256, 128) / 16)
        lora_a = torch.nn.Parameter(torch.randn(8, 128) / 16)
        lora_b = torch.nn.Parameter(torch.zeros(256, 8))
        y = nf4_linear(torch.randn(4, 10, 128), w, lora_a=lora_a, lora_b=lora_b, lora_scale=2.0)
        y.square().mean().backward()
    """
    if not isinstance(w, NF4Tensor):
        raise ValueError(f"w must be an NF4Tensor, as quantize_nf4 makes them, got {type(w).__name__}")
    return frozen_linear(x, w, bias, lora_a, lora_b, lora_scale)


def frozen_linear(
    x: Tensor,
    w: Weight,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
) -> Tensor:
    """``nf4_linear``, or ``lora_linear``, whichever ``w`` is."""
    check(x, w, bias, lora_a, lora_b)
    check_number("lora_scale", lora_scale)
    x, bias, lora_a, lora_b = autocast(x, bias, lora_a, lora_b)
    layer = frozen_layer(x, w, bias, lora_a, lora_b, lora_scale)
    y, _ = linear_op(x.reshape(-1, w.shape[1]), layer)
    return y.view(*x.shape[:-1], w.shape[0])


def frozen_layer(
    x: Tensor,
    w: Weight,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
) -> FrozenLayer:
    """As operators take it, in the dtype of x."""
    bias, lora_a, lora_b = (None if p is None else p.to(x.dtype) for p in (bias, lora_a, lora_b))
    bias = contiguous(bias)
    weight, packing = unpack(w)
    if weight is w:
        weight = weight.to(x.dtype)
    return FrozenLayer(weight, bias, lora_a, lora_b, lora_scale, use_triton(x), packing)


def unpack(w: Weight) -> tuple[Tensor, LayoutArguments]:
    """The tensor of a weight and its layout, as operators take them."""
    return (w.bytes, w.layout.arguments) if isinstance(w, NF4Tensor) else (w, NOT_PACKED)


def check(x: Tensor, w: Weight, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None) -> None:
    check_floating("x", x)
    if len(w.shape) != 2 or x.dim() == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"w must be (N, K) for x (..., K), got {tuple(w.shape)} for {tuple(x.shape)}")
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora_a and lora_b come together, got one of them")
    rows, width = w.shape
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must have one element a row of w, ({rows},), got {tuple(bias.shape)}")
    if lora_a is not None and lora_b is not None:
        rank = lora_a.shape[0] if lora_a.dim() else 0
        if lora_a.shape != (rank, width) or lora_b.shape != (rows, rank):
            raise ValueError(
                f"lora_a and lora_b must be (R, {width}) and ({rows}, R), "
                f"got {tuple(lora_a.shape)} and {tuple(lora_b.shape)}"
            )
    if isinstance(w, Tensor):
        check_same_dtype("w", w, "x", x)
        if w.requires_grad:
            raise ValueError("w is frozen and gets no gradient: detach it, or set requires_grad to False")
    check_same_device("w", w, x)
    for name, tensor in (("bias", bias), ("lora_a", lora_a), ("lora_b", lora_b)):
        check_parameter(name, tensor, x)
