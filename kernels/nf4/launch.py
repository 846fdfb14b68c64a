"""Launch choices of the 4-bit weights."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..frame.launch import Chip, cdiv
from ..frame.tuned import tuned
from .decode import ASSEMBLY
from .layout import Layout

FEW_TOKENS = 16  # what one instruction of the tensor cores takes beside 16 rows of the weight, twice
MOST_TOKENS = 256


def strategy(tokens: int, layout: Layout, dtype: torch.dtype) -> str:
    """``"few tokens"``, ``"tiles"`` or ``"workspace"``.

    A workspace costs the 2.5 bytes per weight that decoding moves, and then runs at the speed of the BLAS library.
    Taking 0.6 of that for the tiles (to be measured), a chip that does 230 operations in the time of a byte
    breaks even at 2.5 · 230 / 2 / (1 / 0.6 − 1) = 430 tokens, one that does 170 at 320; 256 is on the safe side.
    The kernels multiply in 16 bits, and want whole blocks in a row.
    """
    fits = dtype in ASSEMBLY and layout.quant_type == "nf4" and layout.shape[1] % max(layout.block_size, 64) == 0
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
def few_tokens_launch(chip: Chip, kernel: str, tokens: int, rows: int) -> FewTokensLaunch:
    """32 rows, whose warps then share what they read of x; 16 where 32 would leave a quarter of the chip idle.
    ``tokens`` are 8 or 16, the most that there are.

    With 8 warps and 4 stages a program of 32 rows has 24 KiB of weights under way, which is what a
    multiprocessor's share of the memory's bandwidth and latency (4.8 TB/s · 0.7 µs / 132) asks for.
    """
    idle = 4 * cdiv(rows, 32) < 3 * chip.multiprocessors
    return FewTokensLaunch(16 if idle else 32, tokens)


def few_tokens_launch_for(kernel: str, chip: Chip, tokens: int, rows: int) -> FewTokensLaunch:
    return few_tokens_launch(chip, kernel, 8 if tokens <= 8 else FEW_TOKENS, rows)


@dataclass(frozen=True)
class TilesLaunch:
    rows: int
    tokens: int
    warps: int = 8
    stages: int = 4


@tuned("nf4", TilesLaunch)
@lru_cache
def tiles_launch(chip: Chip, kernel: str, tokens: int) -> TilesLaunch:
    """128 rows are what the tensor cores of the newer chips take at once. At 256 tokens the sums spill.
    ``tokens`` are 64 or 256, the most that there are."""
    return TilesLaunch(128, 64 if tokens <= 64 else 128)


def tiles_launch_for(kernel: str, chip: Chip, tokens: int) -> TilesLaunch:
    return tiles_launch(chip, kernel, 64 if tokens <= 64 else MOST_TOKENS)


def tile_splits(programs: int, steps: int, chip: Chip) -> int:
    """In how many parts the width is cut where there are fewer tiles than multiprocessors; each part costs a
    float32 result to write and read again, so it has at least eight steps."""
    return max(1, min(chip.multiprocessors // max(programs, 1), steps // 8))


@dataclass(frozen=True)
class DequantizeLaunch:
    """A program decodes ``segments`` runs of 16 bytes."""

    segments: int
    warps: int


@tuned("nf4", DequantizeLaunch)
@lru_cache
def dequantize_launch(chip: Chip, itemsize: int) -> DequantizeLaunch:
    """One 16-byte load per thread, and 64 bytes (16-bit results) or 128 bytes to store."""
    return DequantizeLaunch(segments=128, warps=4)
