"""What the compile check compiles of ``int8_linear``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..compile_check import CompileCase
from ..frame.launch import Chip
from ..nf4.launch import FEW_TOKENS
from .ops import by_few_tokens, by_tiles


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Both kernels, for few rows and many."""
    product = {90: "wgmma", 100: "tcgen05"}.get(chip.capability, "mma")
    expect = {"int8_few_tokens": ("mma", "cp.async"), "int8_tiles": (product, "cp.async")}
    for tokens, rows, dtype in (
        (1, 4096, torch.bfloat16),
        (16, 1024, torch.float16),
        (64, 4096, torch.bfloat16),
        (256, 28672, torch.bfloat16),
    ):
        yield _case(tokens, rows, dtype, expect)


def _case(tokens: int, rows: int, dtype: torch.dtype, expect: dict) -> CompileCase:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def forward() -> None:
        codes, scale = meta(rows, 4096, dtype=torch.int8), meta(rows, dtype=torch.float32)
        (by_few_tokens if tokens <= FEW_TOKENS else by_tiles)(meta(tokens, 4096), codes, scale, meta(rows))

    return CompileCase("int8_linear", f"{tokens} tokens, {rows} rows, {str(dtype)[6:]}", forward, expect)
