"""The Newton–Schulz iteration of Muon: towards the nearest orthogonal matrix, by matrix products alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def symmetric_product(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha · x xᵀ + beta · x`` of a stack of matrices (B, n, m); with a beta, x is square and symmetric."""
    if beta == 0:
        return torch.bmm(x, x.mT) if alpha == 1 else torch.bmm(x, x.mT) * alpha
    return torch.baddbmm(x, x, x.mT, alpha=alpha, beta=beta)


def newton_schulz(
    x: Tensor,
    steps: int,
    coefficients: tuple[float, float, float],
    eps: float,
    dtype: torch.dtype,
    product: Callable = symmetric_product,
) -> Tensor:
    """See ``llmfast.kernels.newton_schulz``; ``x`` is (B, R, C), and ``product`` multiplies what is symmetric."""
    a, b, c = coefficients
    at_least = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=at_least)
    y = (x / norm.clamp(min=eps)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    for _ in range(steps):
        gram = product(y.mT if tall else y, 1.0, 0.0)
        update = product(gram, c, b)
        y = torch.baddbmm(y, y, update, beta=a) if tall else torch.baddbmm(y, update, y, beta=a)
    return y.to(x.dtype)
