"""Launch choices of ``rope``."""

from dataclasses import dataclass
from functools import lru_cache

from ..frame.launch import Chip, next_power_of_2
from ..frame.tuned import tuned

TILE = 4096  # elements a program takes at most: 16 per thread of eight warps


@dataclass(frozen=True)
class RopeLaunch:
    """One program rotates ``heads`` heads of a token."""

    heads: int
    warps: int


@tuned("rope", RopeLaunch)
@lru_cache
def launch(chip: Chip, heads: int, rotary_dim: int) -> RopeLaunch:
    """As many heads as share one computation of the angles without spilling."""
    columns = 2 * next_power_of_2(rotary_dim // 2)
    block = min(next_power_of_2(heads), max(1, TILE // columns))
    return RopeLaunch(block, min(max(block * columns // 512, 1), 8))
