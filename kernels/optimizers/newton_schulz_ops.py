"""The operator of ``newton_schulz``: a product whose result is symmetric."""

from typing import NamedTuple

from torch import Tensor

from ..frame.launch import Chip, cdiv, run
from ..frame.operator import define
from .launch import product_launch
from .newton_schulz_kernels import symmetric_product_kernel


class SymmetricProductCall(NamedTuple):
    """``alpha · x xᵀ + beta · x``; with a beta, x is square and symmetric."""

    x: Tensor  # (B, R, C)
    alpha: float
    beta: float

    def allocate(self) -> Tensor:
        return self.x.new_empty((*self.x.shape[:-1], self.x.shape[-2]))


def symmetric_product(call: SymmetricProductCall) -> Tensor:
    out = call.allocate()
    x, alpha, beta = call
    count, size, depth = x.shape
    if beta != 0 or 1 not in x.stride()[1:]:
        x = x.contiguous()
    chosen = product_launch(Chip.of(x.device), size, x.element_size())
    tiles = cdiv(size, chosen.block)
    run(
        symmetric_product_kernel,
        (tiles * (tiles + 1) // 2, count),
        x,
        *(x, out, size, depth, *x.stride(), alpha, beta),
        ADD=beta != 0,
        BLOCK=chosen.block,
        DEPTH=chosen.depth,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return out


symmetric_product_op = define("symmetric_product", SymmetricProductCall, symmetric_product)
