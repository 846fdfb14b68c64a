"""The sum of float32 partial results, one row per program, in a fixed order: equal bits in every run."""

import torch
from torch import Tensor

from ._triton import tl, triton
from .launch import cdiv
from .plan import Plan, planned

PROGRAMS = 64  # rows in flight: a few steps cover a few hundred rows


def columns_a_program(width: int) -> int:
    """One 128-byte line of float32, so that a narrow sum still has many programs; four where it is wide."""
    return 32 if width <= 8192 else 128


@triton.jit(do_not_specialize=["programs"])
def _sum_partials(partials, out, programs, width, PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((PROGRAMS, COLUMNS), tl.float32)
    for start in range(0, programs, PROGRAMS):
        program = (start + tl.arange(0, PROGRAMS)).to(tl.int64)[:, None]
        mask = (program < programs) & (columns < width)
        total += tl.load(partials + program * width + columns, mask, other=0.0)
    sums = tl.sum(total, 0, keep_dims=True)
    tl.store(out + columns, sums.to(out.dtype.element_ty), columns < width)


@planned
def _plan(programs: int, width: int) -> Plan:
    columns = columns_a_program(width)
    grid, warps = (cdiv(width, columns),), 4 if columns == 32 else 8
    return Plan(_sum_partials, grid, programs, width, PROGRAMS, columns, num_warps=warps)


def sum_partials(partials: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of ``partials`` (programs, width) float32, rounded to ``dtype``."""
    out = partials.new_empty(shape, dtype=dtype)
    _plan(*partials.shape).run(partials, partials, out)
    return out
