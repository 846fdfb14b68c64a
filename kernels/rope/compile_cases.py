"""What the compile check compiles of ``rope``."""

from collections.abc import Iterator

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from .ops import RopeCall, Rotation, rotate


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Head widths from 64 to 256, few heads and many, both layouts, a partial width, tables and none."""
    for rotary_dim in (64, 128, 256):
        for heads in (1, 8, 64):
            yield _case(heads, rotary_dim, rotary_dim, False, table=True)
        yield _case(32, rotary_dim, rotary_dim, False, table=False)
        yield _case(32, rotary_dim, rotary_dim, True, table=True)
    yield _case(32, 128, 64, False, table=True)
    yield _case(32, 96, 96, True, table=False)


def _case(heads: int, width: int, rotary_dim: int, interleaved: bool, *, table: bool) -> CompileCase:
    def call() -> None:
        q = torch.empty(2, 64, heads, width, dtype=torch.bfloat16, device="meta")
        cos = torch.empty(64, rotary_dim // 2, device="meta") if table else None
        rotate(RopeCall(q, q, Rotation(None, cos, cos, 10000.0, rotary_dim, interleaved, False)))

    layout = "interleaved" if interleaved else "half-split"
    angles = "table" if table else "base"
    return CompileCase("rope", f"{heads} heads, {rotary_dim} of {width}, {layout}, {angles}", call)
