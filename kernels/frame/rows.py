"""How the rows of a tensor lie in memory: all dimensions but the last are counted as one."""

import math
from typing import NamedTuple

from torch import Tensor

from ._triton import tl, triton


class Rows(NamedTuple):
    """The rows (all dimensions but the last) of a tensor whose last dimension is contiguous.

    Row r lies at ``(r // (n1·n2))·s0 + (r // n2 % n1)·s1 + (r % n2)·s2`` elements from the start.
    """

    count: int
    width: int
    strides: tuple[int, int, int, int, int]  # n1, n2, s0, s1, s2
    strided: bool


def rows_of(x: Tensor) -> tuple[Tensor, Rows]:
    """``x`` and how its rows lie; a tensor that needs more than three strides, or whose last dimension is not
    contiguous, is copied."""
    width = x.shape[-1]
    count = x.numel() // width if width else 0
    if x.is_contiguous():
        return x, Rows(count, width, (1, 1, width, 0, 0), False)
    levels: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    if len(levels) > 3 or (x.stride(-1) != 1 and width != 1):
        return rows_of(x.contiguous())
    (_, s0), (n1, s1), (n2, s2) = [(1, 0)] * (3 - len(levels)) + levels
    return x, Rows(count, width, (n1, n2, s0, s1, s2), True)


def evenly_spaced_rows(x: Tensor) -> tuple[Tensor, int]:
    """``x`` and the one distance between its rows, in elements; copied where there is no such distance."""
    x, rows = rows_of(x)
    if not rows.strided:
        return x, rows.width
    _, n2, _, _, s2 = rows.strides
    return (x, s2) if n2 == rows.count else (x.contiguous(), rows.width)


def aligned(x: Tensor) -> Tensor:
    """``x`` itself if its rows lie densely from a 16-byte boundary on, or else a copy that does."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def row_count(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


@triton.jit
def row_offset(row, n1, n2, s0, s1, s2, width, STRIDED: tl.constexpr):
    """Where a row starts, in elements: see ``launch.Rows``."""
    if STRIDED:
        return (row // (n1 * n2)) * s0 + (row // n2 % n1) * s1 + (row % n2) * s2
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return row * width
