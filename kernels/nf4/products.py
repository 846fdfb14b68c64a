"""``x · Wᵀ`` on a packed weight, with what is added to it: which kernel, and its launch.

Three ways, chosen by shape (``strategy``): a kernel that streams the packed weight once, for up to 16 tokens (it
decodes by a table in shared memory where Triton's Gluon can read one, else in registers); a kernel on tiles of a matrix
product, decoding as it goes; the whole weight decoded to a workspace, and the BLAS library. The workspace lives for one
product.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv
from ..frame.partials import sum_partials
from ..frame.plan import Plan, planned
from ..frame.rows import evenly_spaced_rows
from ..linear.ops import multiply as multiply_rows
from . import dequantize, table_kernel
from .decode import ASSEMBLY
from .launch import few_tokens_launch_for, run_bytes, strategy, tile_splits, tiles_launch_for
from .layout import Layout
from .linear_kernels import linear_few_tokens, linear_tiles
from .reference import GROUP, code_values


class Factors(NamedTuple):
    """``x · Wᵀ + bias + lora_scale · hidden · lora_bᵀ``."""

    x: Tensor  # (M, K)
    record: Tensor
    layout: Layout  # of W (N, K)
    bias: Tensor | None  # (N,)
    hidden: Tensor | None  # (M, R)
    lora_b: Tensor | None  # (N, R)
    lora_scale: float

    @property
    def rank(self) -> int:
        return 0 if self.hidden is None else self.hidden.shape[1]

    def arguments(self, x: Tensor, y: Tensor) -> tuple:
        """The first arguments of both kernels."""
        code = code_values(self.layout.quant_type, x.device)
        lora_b = None if self.lora_b is None else self.lora_b.contiguous()
        return x, self.record, code, self.bias, self.hidden, lora_b, y


def multiply(factors: Factors) -> Tensor:
    """(M, N), in the dtype of x."""
    if is_batch_invariant():
        return by_workspace(factors)
    how = strategy(factors.x.shape[0], factors.layout, factors.x.dtype)
    return {"few tokens": by_few_tokens, "tiles": by_tiles, "workspace": by_workspace}[how](factors)


def by_workspace(factors: Factors) -> Tensor:
    weight = dequantize.by_kernel(factors.record, factors.layout, factors.x.dtype)
    return with_adapter(linear(factors.x, weight, factors.bias), factors.hidden, factors.lora_b, factors.lora_scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of the BLAS library, or in batch-invariant mode the one of this library."""
    return multiply_rows(x, weight, bias, kernels=True) if is_batch_invariant() else F.linear(x, weight, bias)


def with_adapter(y: Tensor, hidden: Tensor | None, lora_b: Tensor | None, lora_scale: float) -> Tensor:
    """``y + lora_scale · hidden · lora_bᵀ``, in place."""
    if hidden is None or lora_b is None:
        return y
    if is_batch_invariant():
        return y.add_(multiply_rows(hidden, lora_b, None, kernels=True), alpha=lora_scale)
    return y.addmm_(hidden, lora_b.T, alpha=lora_scale)


def by_few_tokens(factors: Factors) -> Tensor:
    by_lookup = table_kernel.takes(factors.layout, Chip.of(factors.x.device))
    return (by_table if by_lookup else by_registers)(factors)


def by_table(factors: Factors) -> Tensor:
    x, x_stride = evenly_spaced_rows(factors.x)
    tokens, layout = x.shape[0], factors.layout
    y = x.new_empty((tokens, layout.shape[0]))
    x, record, _, *rest = factors.arguments(x, y)
    plan = _table_plan(layout, tokens, x_stride, factors.rank, factors.lora_scale)
    plan.run(x, x, record, table_kernel.byte_table(x.dtype, x.device), *rest)
    return y


@planned
def _table_plan(layout: Layout, tokens: int, x_stride: int, rank: int, lora_scale: float) -> Plan:
    rows, width = layout.shape
    return Plan(
        table_kernel.table_kernel,
        (cdiv(rows, table_kernel.ROWS.value) if tokens else 0,),
        *(tokens, rows, width, x_stride, rank, lora_scale, *layout.scale_starts),
        DOUBLE_QUANT=layout.double_quant,
        GROUP=GROUP,
        TOKENS=8 if tokens <= 8 else 16,
        num_warps=table_kernel.PARTS.value,
        maxnreg=table_kernel.registers(tokens),
    )


def by_registers(factors: Factors) -> Tensor:
    x, x_stride = evenly_spaced_rows(factors.x)
    tokens, layout = x.shape[0], factors.layout
    y = x.new_empty((tokens, layout.shape[0]))
    chip = Chip.of(x.device)
    plan = _registers_plan(chip, layout, x.dtype, tokens, x_stride, factors.rank, factors.lora_scale)
    plan.run(x, *factors.arguments(x, y))
    return y


def _constants(layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    block = {"BLOCK": layout.block_size, "DOUBLE_QUANT": layout.double_quant, "GROUP": GROUP}
    return {**block, "ASSEMBLY": ASSEMBLY[dtype], "BYTES": run_bytes(layout)}


@planned
def _registers_plan(
    chip: Chip, layout: Layout, dtype: torch.dtype, tokens: int, x_stride: int, rank: int, lora_scale: float
) -> Plan:
    rows, width = layout.shape
    chosen = few_tokens_launch_for("nf4", chip, tokens, rows)
    return Plan(
        linear_few_tokens,
        (cdiv(rows, chosen.rows) if tokens else 0,),
        *(tokens, rows, width, x_stride, rank, lora_scale, *layout.scale_starts),
        **_constants(layout, dtype),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        PARTS=chosen.warps,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )


def by_tiles(factors: Factors) -> Tensor:
    tokens, (rows, width) = factors.x.shape[0], factors.layout.shape
    x = factors.x.reshape(tokens, width // 2, 2).permute(2, 0, 1).contiguous()  # even places, then odd ones
    chip = Chip.of(x.device)
    splits, plan = _tiles_plan(chip, factors.layout, x.dtype, tokens, factors.rank, factors.lora_scale)
    y = x.new_empty((splits, tokens, rows), dtype=torch.float32 if splits > 1 else x.dtype)
    plan.run(x, *factors.arguments(x, y))
    if splits == 1:
        return y[0]
    return sum_partials(y.view(splits, -1), torch.Size((tokens, rows)), factors.x.dtype)


@planned
def _tiles_plan(
    chip: Chip, layout: Layout, dtype: torch.dtype, tokens: int, rank: int, lora_scale: float
) -> tuple[int, Plan]:
    """In how many parts the width is cut, and the launch."""
    rows, width = layout.shape
    chosen = tiles_launch_for("nf4", chip, tokens)
    tiles = cdiv(rows, chosen.rows), cdiv(tokens, chosen.tokens)
    steps = width // 2 // run_bytes(layout)
    splits = tile_splits(tiles[0] * tiles[1], steps, chip)
    return splits, Plan(
        linear_tiles,
        (*tiles, splits),
        *(tokens, rows, width, rank, lora_scale, cdiv(steps, splits), *layout.scale_starts),
        **_constants(layout, dtype),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
