"""``x · Wᵀ`` on a packed weight, with what is added to it: which kernel, and its launch.

Three ways, chosen by shape (``strategy``): a kernel that streams the packed weight once, for up to 16 tokens; a
kernel on tiles of a matrix product, decoding as it goes; the whole weight decoded to a workspace, and the BLAS
library. The workspace lives for one product.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import Device, cdiv, evenly_spaced_rows, run
from ..partials import sum_partials
from ..reference.nf4 import GROUP, code_values
from ..tuned import tuned
from . import dequantize
from .decode import ASSEMBLY
from .layout import Layout
from .linear_kernels import linear_few_tokens, linear_tiles

# -------------------------------------------------------------------------------------------- launch choices

FEW_TOKENS = 16  # what one instruction of the tensor cores takes beside 16 rows of the weight, twice
MOST_TOKENS = 256


def strategy(tokens: int, layout: Layout, dtype: torch.dtype) -> str:
    """``"few tokens"``, ``"tiles"`` or ``"workspace"``.

    A workspace costs the 2.5 bytes a weight that decoding moves, and then runs at the speed of the BLAS library.
    Taking 0.6 of that for the tiles (to be measured), a chip that does 230 operations in the time of a byte
    breaks even at 2.5 · 230 / 2 / (1 / 0.6 − 1) = 430 tokens, one that does 170 at 320; 256 is on the safe side.
    The kernels multiply in 16 bits, and want whole blocks in a row.
    """
    fits = (
        dtype in ASSEMBLY and layout.quant_type == "nf4" and layout.shape[1] % max(layout.block_size, 64) == 0
    )
    if not fits or tokens > MOST_TOKENS:
        return "workspace"
    return "few tokens" if tokens <= FEW_TOKENS else "tiles"


def run_bytes(layout: Layout) -> int:
    """Bytes of a row between two scalings: a block, or 64 numbers of a larger one, which is two steps of the tensor
    cores for each half of the bytes."""
    return min(layout.block_size // 2, 32)


@dataclass(frozen=True)
class FewTokensLaunch:
    """A program does ``rows`` rows of the weight for up to ``tokens`` tokens, ``warps`` runs of bytes at a time."""

    rows: int
    tokens: int
    warps: int = 8
    stages: int = 4


@tuned("nf4", FewTokensLaunch)
@lru_cache
def few_tokens_launch(device: Device, kernel: str, tokens: int, rows: int) -> FewTokensLaunch:
    """32 rows, whose warps then share what they read of x; 16 where 32 would leave a quarter of the chip idle.
    ``tokens`` are 8 or 16, the most that there are.

    With 8 warps and 4 stages a program of 32 rows has 24 KiB of weights under way, which is what a
    multiprocessor's share of the memory's bandwidth and latency (4.8 TB/s · 0.7 µs / 132) asks for.
    """
    idle = 4 * cdiv(rows, 32) < 3 * device.multiprocessors
    return FewTokensLaunch(16 if idle else 32, tokens)


def few_tokens_launch_for(kernel: str, x: Tensor, rows: int) -> FewTokensLaunch:
    return few_tokens_launch(Device.of(x.device), kernel, 8 if x.shape[0] <= 8 else FEW_TOKENS, rows)


@dataclass(frozen=True)
class TilesLaunch:
    rows: int
    tokens: int
    warps: int = 8
    stages: int = 4


@tuned("nf4", TilesLaunch)
@lru_cache
def tiles_launch(device: Device, kernel: str, tokens: int) -> TilesLaunch:
    """128 rows are what the tensor cores of the newer chips take at once. At 256 tokens the sums spill.
    ``tokens`` are 64 or 256, the most that there are."""
    return TilesLaunch(128, 64 if tokens <= 64 else 128)


def tiles_launch_for(kernel: str, x: Tensor) -> TilesLaunch:
    return tiles_launch(Device.of(x.device), kernel, 64 if x.shape[0] <= 64 else MOST_TOKENS)


def tile_splits(programs: int, steps: int, device: Device) -> int:
    """In how many parts the width is cut where there are fewer tiles than multiprocessors; each part costs a
    float32 result to write and read again, so it has at least eight steps."""
    return max(1, min(device.multiprocessors // max(programs, 1), steps // 8))


# -------------------------------------------------------------------------------------------------- products


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

    def constants(self) -> dict:
        layout = self.layout
        block = {"BLOCK": layout.block_size, "DOUBLE_QUANT": layout.double_quant, "GROUP": GROUP}
        return {**block, "ASSEMBLY": ASSEMBLY[self.x.dtype], "BYTES": run_bytes(layout)}


def multiply(factors: Factors) -> Tensor:
    """(M, N), in the dtype of x."""
    how = strategy(factors.x.shape[0], factors.layout, factors.x.dtype)
    return {"few tokens": by_few_tokens, "tiles": by_tiles, "workspace": by_workspace}[how](factors)


def by_workspace(factors: Factors) -> Tensor:
    weight = dequantize.by_kernel(factors.record, factors.layout, factors.x.dtype)
    y = F.linear(factors.x, weight, factors.bias)
    if factors.hidden is not None:
        y.addmm_(factors.hidden, factors.lora_b.T, alpha=factors.lora_scale)
    return y


def by_few_tokens(factors: Factors) -> Tensor:
    x, x_stride = evenly_spaced_rows(factors.x)
    tokens, (rows, width) = x.shape[0], factors.layout.shape
    y = x.new_empty((tokens, rows))
    chosen = few_tokens_launch_for("nf4", x, rows)
    run(
        linear_few_tokens,
        (cdiv(rows, chosen.rows) if tokens else 0,),
        x,
        *factors.arguments(x, y),
        *(tokens, rows, width, x_stride, factors.rank, factors.lora_scale, *factors.layout.scale_starts),
        **factors.constants(),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        PARTS=chosen.warps,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return y


def by_tiles(factors: Factors) -> Tensor:
    tokens, (rows, width) = factors.x.shape[0], factors.layout.shape
    x = factors.x.reshape(tokens, width // 2, 2).permute(2, 0, 1).contiguous()  # even places, then odd ones
    chosen = tiles_launch_for("nf4", factors.x)
    tiles = cdiv(rows, chosen.rows), cdiv(tokens, chosen.tokens)
    steps = width // 2 // run_bytes(factors.layout)
    splits = tile_splits(tiles[0] * tiles[1], steps, Device.of(x.device))
    y = x.new_empty((splits, tokens, rows), dtype=torch.float32 if splits > 1 else x.dtype)
    run(
        linear_tiles,
        (*tiles, splits),
        x,
        *factors.arguments(x, y),
        *(tokens, rows, width, factors.rank, factors.lora_scale, cdiv(steps, splits)),
        *factors.layout.scale_starts,
        **factors.constants(),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    if splits == 1:
        return y[0]
    return sum_partials(y.view(splits, -1), torch.Size((tokens, rows)), factors.x.dtype)
