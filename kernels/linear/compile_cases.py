"""What the compile check compiles of ``linear``."""

from collections.abc import Iterator
from functools import partial

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from .ops import multiply


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Both dtypes' tiles, both ways the weight lies, and a width that is no whole number of steps."""
    product = {90: "wgmma", 100: "tcgen05"}.get(chip.capability, "mma")
    for dtype, width, transposed in (
        (torch.bfloat16, 4096, False),
        (torch.bfloat16, 4096, True),
        (torch.float16, 1000, False),
        (torch.float32, 4096, False),
        (torch.float32, 4096, True),
    ):
        name = f"{width} {str(dtype)[6:]}{', transposed' if transposed else ''}"
        # Where rows are no whole number of 16 bytes that Triton knows of, a mask by element forbids copies of 16.
        expect = {"linear_kernel": (product, "cp.async") if width % 16 == 0 else (product,)}
        yield CompileCase("linear", name, partial(_linear, width, dtype, transposed), expect)


def _linear(width: int, dtype: torch.dtype, transposed: bool) -> None:
    shape = (width, 4096) if transposed else (4096, width)
    x, weight, bias = (torch.empty(s, dtype=dtype, device="meta") for s in ((512, width), shape, (4096,)))
    multiply(x, weight, bias, True, transposed)
