"""Launch choices of the optimizers."""

from dataclasses import dataclass
from functools import lru_cache

from ..frame.launch import Chip
from ..frame.tuned import tuned
from .adamw_reference import LANES, WORDS

# ------------------------------------------------------------------------------------- adamw_ and adamw_8bit_

TENSORS = 16  # of a launch: about a kilobyte of pointers, of the 4 KiB that arguments may take
PROGRAM = LANES * WORDS  # elements


@dataclass(frozen=True)
class AdamWLaunch:
    """A program steps through PROGRAM elements."""

    warps: int


@tuned("optimizer", AdamWLaunch)
@lru_cache
def adamw_launch(chip: Chip, kernel: str, itemsize: int) -> AdamWLaunch:
    """Eight elements per thread at a time: one 16-byte access in bfloat16, two in float32."""
    return AdamWLaunch(warps=4)


# ---------------------------------------------------------------------------------------------- newton_schulz


@dataclass(frozen=True)
class ProductLaunch:
    """A program computes a square of ``block``², ``depth`` of the summed dimension a step."""

    block: int
    depth: int
    warps: int
    stages: int


@tuned("optimizer", ProductLaunch)
@lru_cache
def product_launch(chip: Chip, size: int, itemsize: int) -> ProductLaunch:
    """Three stages of two tiles take 96 KiB, which every chip has. Matrices of less than four tiles per side get
    smaller ones: more programs, and less of the triangle's diagonal computed twice. So does float32, to fit; with
    twice the warps they would repeat one another's products."""
    if itemsize == 4:
        return ProductLaunch(64, 32, warps=4, stages=3)
    if size < 512:
        return ProductLaunch(64, 64, warps=4, stages=3)
    return ProductLaunch(128, 64, warps=8, stages=3)
