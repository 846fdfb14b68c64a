"""Launch choices of ``linear``: functions of the chip and the dtype alone, never of the number of rows."""

from dataclasses import dataclass
from functools import lru_cache

from ..frame.launch import Chip


@dataclass(frozen=True)
class LinearLaunch:
    """A program computes ``rows`` × ``columns`` of the result, ``depth`` of the summed dimension a step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@lru_cache
def linear_launch(chip: Chip, itemsize: int) -> LinearLaunch:
    """Three stages of two tiles take 96 KiB in 16 bits, which every chip has. float32, whose product is three of
    tf32 parts, spills on larger tiles, and with more warps they repeat one another's products. There is no measured
    table for it: a row in one that depended on the number of rows would break the promise."""
    if itemsize == 4:
        return LinearLaunch(64, 64, 32, warps=4, stages=3)
    return LinearLaunch(128, 128, 64, warps=8, stages=3)
