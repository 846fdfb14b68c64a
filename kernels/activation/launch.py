"""Launch choices of the activations."""

from dataclasses import dataclass
from functools import lru_cache

from ..frame.launch import Chip, cdiv, next_power_of_2
from ..frame.tuned import tuned

LONG = 1024  # columns of a row that is cut
MOST_PROGRAMS = 65535  # what a grid's second dimension holds


@dataclass(frozen=True)
class ActivationLaunch:
    """One program takes ``block`` columns."""

    block: int
    warps: int


@tuned("activation", ActivationLaunch)
@lru_cache
def launch(chip: Chip, kernel: str, columns: int) -> ActivationLaunch:
    """Eight elements per thread: one 16-byte access per tensor in half precision, two in float32. ``columns`` is a
    power of two, and LONG for all longer rows."""
    return ActivationLaunch(columns, max(1, columns // 256))


def launch_for(kernel: str, chip: Chip, columns: int) -> ActivationLaunch:
    return launch(chip, kernel, min(max(next_power_of_2(columns), 128), LONG))


def bias_programs(rows: int, columns: int, chosen: ActivationLaunch, chip: Chip) -> int:
    """How many programs share the rows of a column block: 1024 threads per multiprocessor fill the chip."""
    fill = chip.multiprocessors * (32 // chosen.warps)
    return max(1, min(rows, cdiv(fill, cdiv(columns, chosen.block))))
