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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .backend import use_triton
from .checks import check_floating
from .gate import GateCase
from .launch import Device, cdiv, run
from .newton_schulz_kernels import symmetric_product_kernel
from .operator import define
from .reference import newton_schulz as definition
from .tuned import tuned

COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# -------------------------------------------------------------------------------------------- launch choices


@dataclass(frozen=True)
class ProductLaunch:
    """A program computes a square of ``block``², ``depth`` of the summed dimension a step."""

    block: int
    depth: int
    warps: int
    stages: int


@tuned("optimizer", ProductLaunch)
@lru_cache
def product_launch(device: Device, size: int, itemsize: int) -> ProductLaunch:
    """Three stages of two tiles take 96 KiB, which every chip has. Matrices of less than four tiles a side get smaller
    ones: more programs, and less of the triangle's diagonal computed twice. So does float32, to fit, with twice the
    warps a tile: its three products of parts spill on four."""
    if itemsize == 4:
        return ProductLaunch(64, 32, warps=8, stages=3)
    if size < 512:
        return ProductLaunch(64, 64, warps=4, stages=3)
    return ProductLaunch(128, 64, warps=8, stages=3)


# -------------------------------------------------------------------------------------------------- operator


def _allocate(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-2]))


def _run(x: Tensor, alpha: float, beta: float) -> Tensor:
    out = _allocate(x, alpha, beta)
    count, size, depth = x.shape
    if beta != 0 or 1 not in x.stride()[1:]:
        x = x.contiguous()
    chosen = product_launch(Device.of(x.device), size, x.element_size())
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


_product_op = define("symmetric_product(Tensor x, float alpha, float beta) -> Tensor", _run, _allocate)

# ------------------------------------------------------------------------------------------- public function


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
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    product = _product_op if use_triton(x.new_empty(0, dtype=dtype)) else definition.symmetric_product
    stack = x.detach().reshape(-1, *x.shape[-2:]) if x.numel() else x.new_empty((0, *x.shape[-2:]))
    with torch.autocast(x.device.type, enabled=False):
        out = definition.newton_schulz(stack, steps, coefficients, eps, dtype, product)
    return out.view(x.shape)


def _iteration_dtype(x: Tensor) -> torch.dtype:
    if x.dtype == torch.float64:
        return torch.float64
    if x.device.type == "cpu" and not _cpu_multiplies_bfloat16():
        return torch.float32
    return torch.bfloat16


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


# ----------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Both forms of the product, of wide and of tall matrices, small and large."""
    for dtype in (torch.bfloat16, torch.float32):
        for rows, columns in ((256, 512), (512, 256), (2048, 4096), (4096, 2048)):
            yield _gate_case(rows, columns, dtype, device)


def _gate_case(rows: int, columns: int, dtype: torch.dtype, device: Device) -> GateCase:
    def products() -> None:
        x = torch.empty(2, rows, columns, dtype=dtype, device="meta")
        gram = _run(x.mT if rows > columns else x, 1.0, 0.0)
        _run(gram, COEFFICIENTS[2], COEFFICIENTS[1])

    meant = {90: "wgmma", 100: "tcgen05"}.get(device.capability, "mma")
    expect = {"symmetric_product_kernel": (meant,)} if dtype == torch.bfloat16 else None
    case = f"{rows} x {columns} {str(dtype).removeprefix('torch.')}"
    return GateCase("newton_schulz", case, products, expect)
