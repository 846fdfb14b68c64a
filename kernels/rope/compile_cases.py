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
    for table in (False, True):
        yield _case(28, 128, 128, False, table=table, sections=[16, 24, 24])


def _case(
    heads: int, width: int, rotary_dim: int, interleaved: bool, *, table: bool, sections: list[int] | None = None
) -> CompileCase:
    def call() -> None:
        q = torch.empty(2, 64, heads, width, dtype=torch.bfloat16, device="meta")
        cos = torch.empty(64, rotary_dim // 2, device="meta") if table else None
        positions = torch.empty(3, 2, 64, dtype=torch.int64, device="meta") if sections else None
        rotation = Rotation(positions, cos, cos, 10000.0, rotary_dim, sections or [], interleaved, False)
        rotate(RopeCall(q, q, rotation))

    layout = "interleaved" if interleaved else "half-split"
    angles = "table" if table else "base"
    axes = ", three axes" if sections else ""
    return CompileCase("rope", f"{heads} heads, {rotary_dim} of {width}, {layout}, {angles}{axes}", call)
