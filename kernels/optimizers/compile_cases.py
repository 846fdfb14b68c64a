"""What the compile check compiles of the optimizers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..compile_check import CompileCase
from ..frame.launch import Chip, cdiv
from .adamw_ops import AdamW8bitCall, AdamWCall, update, update_8bit
from .adamw_reference import BLOCK, Settings
from .newton_schulz import COEFFICIENTS
from .newton_schulz_ops import SymmetricProductCall, symmetric_product

EVEN, ODD = 2**20, 2**20 - 1


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """AdamW on parameters of each kind, and on sizes that are not even; both forms of the symmetric product, of wide
    and of tall matrices, small and large."""
    for dtype in (torch.float32, torch.bfloat16):
        yield adamw_case(dtype, EVEN)
        yield adamw_case(dtype, ODD)
    for kind in ("stochastic", "masters"):
        yield adamw_case(torch.bfloat16, EVEN, kind)
    yield adamw_8bit_case(torch.float32, EVEN)
    yield adamw_8bit_case(torch.bfloat16, EVEN)
    yield adamw_8bit_case(torch.bfloat16, ODD)
    for kind in ("stochastic", "masters"):
        yield adamw_8bit_case(torch.bfloat16, EVEN, kind)
    for dtype in (torch.bfloat16, torch.float32):
        for rows, columns in ((256, 512), (512, 256), (2048, 4096), (4096, 2048)):
            yield newton_schulz_case(rows, columns, dtype, chip)


def _name(dtype: torch.dtype, size: int, kind: str) -> str:
    name = f"{str(dtype).removeprefix('torch.')} {kind}".strip()
    return f"{name}{'' if size % 16 == 0 else ', odd'}"


def _three(dtype: torch.dtype, *shape: int) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device="meta") for _ in range(3)]


def _settings(kind: str) -> Settings:
    one = torch.empty((), device="meta")
    seed = 1 if kind == "stochastic" else None
    return Settings(one, 0.9, 0.95, 1e-8, 0.1, False, one, one, seed, 0)


def adamw_case(dtype: torch.dtype, size: int, kind: str = "") -> CompileCase:
    def run() -> None:
        wide = _three(torch.float32, size)
        state = (_three(dtype, size), wide, wide, wide if kind == "masters" else [], _three(torch.float32))
        update(AdamWCall(_three(dtype, size), *state, _settings(kind)))

    return CompileCase("adamw", _name(dtype, size, kind), run)


def adamw_8bit_case(dtype: torch.dtype, size: int, kind: str = "") -> CompileCase:
    def run() -> None:
        codes, maxima = _three(torch.uint8, size), _three(torch.float32, cdiv(size, BLOCK))
        masters = _three(torch.float32, size) if kind == "masters" else []
        state = (_three(dtype, size), codes, codes, maxima, maxima, masters, _three(torch.float32))
        update_8bit(AdamW8bitCall(_three(dtype, size), *state, _settings(kind)))

    return CompileCase("adamw_8bit", _name(dtype, size, kind), run)


def newton_schulz_case(rows: int, columns: int, dtype: torch.dtype, chip: Chip) -> CompileCase:
    def products() -> None:
        x = torch.empty(2, rows, columns, dtype=dtype, device="meta")
        gram = symmetric_product(SymmetricProductCall(x.mT if rows > columns else x, 1.0, 0.0))
        symmetric_product(SymmetricProductCall(gram, COEFFICIENTS[2], COEFFICIENTS[1]))

    meant = {90: "wgmma", 100: "tcgen05"}.get(chip.capability, "mma")
    expect = {"symmetric_product_kernel": (meant,)} if dtype == torch.bfloat16 else None
    case = f"{rows} x {columns} {str(dtype).removeprefix('torch.')}"
    return CompileCase("newton_schulz", case, products, expect)
