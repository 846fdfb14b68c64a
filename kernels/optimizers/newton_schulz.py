"""The Newton–Schulz iteration of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    X ← X / ‖X‖                                  (Frobenius)
    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X           (five times)

Each step maps every singular value s to a·s + b·s³ + c·s⁵, which with Muon's coefficients takes all but the smallest
into 0.7 … 1.2, and leaves the singular vectors as they are. Of a tall matrix the shorter side is multiplied:
X (XᵀX) in place of (X Xᵀ) X, the same by associativity.

With G = X Xᵀ a step is three products: G, U = b G + c G², and a X + U X. The first two are symmetric, and one kernel
computes both, in the form ``alpha · x xᵀ + beta · x``: one triangle of tiles, each written twice. For a square matrix
that leaves 2 of 3 products' operations. The third is PyTorch's.
"""

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import check_floating
from . import newton_schulz_reference as reference
from .newton_schulz_ops import symmetric_product_op

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    x: Tensor,
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Takes each matrix U S Vᵀ to about U Vᵀ: singular values that are not tiny end in 0.7 … 1.2.

    The quintic iteration of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), on a whole stack of
    matrices at a time. Not differentiable.

    Args:
        x: (..., R, C), any floating dtype, any strides.
        steps: how often the polynomial is applied.
        coefficients: a, b, c of the polynomial a·s + b·s³ + c·s⁵ of the singular values.
        eps: the least norm to divide by.
        dtype: of the iteration. None is bfloat16 where the device multiplies it in hardware, else float32; float64
            stays.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: for an integer x or dtype, fewer than two dimensions, or steps below 1.

    Example::

        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> bool((newton_schulz(x).diagonal().abs() - 0.95 < 0.25).all())
        True
    """
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have at least two dimensions, got shape {tuple(x.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    dtype = _iteration_dtype(x) if dtype is None else dtype
    if len(coefficients) != 3:
        raise ValueError(f"coefficients must be three numbers, got {len(coefficients)}")
    a, b, c = coefficients
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    product = symmetric_product_op if use_triton(x.new_empty(0, dtype=dtype)) else reference.symmetric_product
    stack = x.detach().reshape(-1, *x.shape[-2:]) if x.numel() else x.new_empty((0, *x.shape[-2:]))
    with torch.autocast(x.device.type, enabled=False):
        out = reference.newton_schulz(stack, steps, (a, b, c), eps, dtype, product)
    return out.view(x.shape)


def _iteration_dtype(x: Tensor) -> torch.dtype:
    if x.dtype == torch.float64:
        return torch.float64
    if x.device.type == "cpu" and not _cpu_multiplies_bfloat16():
        return torch.float32
    return torch.bfloat16


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
