"""Launch choices of the norms."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from ..frame.launch import Chip, cdiv, next_power_of_2
from ..frame.tuned import tuned

TILE = 2048  # elements a program takes at least, so that short rows share one
REGISTERS = 65536  # of a multiprocessor; a kernel may take the share of its resident programs


@dataclass(frozen=True)
class NormLaunch:
    """One program takes ``rows`` rows at a time, ``block`` columns at a time."""

    rows: int
    block: int
    warps: int
    wide: bool  # a row is longer than ``block``
    resident: int  # programs that a multiprocessor holds at a time

    @cached_property
    def registers(self) -> int:
        """The most a thread may take, told to the compiler: left alone it spills a few registers to fit more
        programs."""
        return min(REGISTERS // (32 * self.warps * self.resident) // 8 * 8, 255)


def _longest(width: int, longest: int, unaligned: int) -> int:
    """The longest row that a program holds; where rows do not start on 16 bytes, each element has its own
    address, which takes registers."""
    return unaligned if width % 16 else longest


def _wide_launch(width: int) -> NormLaunch:
    return NormLaunch(1, _longest(width, 4096, unaligned=2048), 8, wide=True, resident=2)


@tuned("norm", NormLaunch)
@lru_cache
def forward_launch(chip: Chip, width: int) -> NormLaunch:
    """Two 16-byte accesses a tensor and thread; at 16,384 columns, four."""
    block = max(next_power_of_2(width), 64)
    if block > _longest(width, 16384, unaligned=8192):
        return _wide_launch(width)
    rows = max(1, TILE // block)
    warps = min(rows * block // 512, 16)
    return NormLaunch(rows, block, warps, wide=False, resident=16 // warps)


@tuned("norm", NormLaunch)
@lru_cache
def backward_launch(chip: Chip, width: int, itemsize: int) -> NormLaunch:
    """Half the elements a thread: h, grad_y and the sums of both parameters' gradients are there at once. What
    the compile check found to fit without a spill on every chip: 80 registers for one row of 2,048, 64 for 4,096
    in half precision, 128 for 8,192."""
    block = max(next_power_of_2(width), 64)
    if block > _longest(width, 16384 // itemsize, unaligned=2048):
        return _wide_launch(width)
    rows = max(1, TILE // block)
    if block <= TILE:
        return NormLaunch(rows, block, 8, wide=False, resident=2 if width % 16 else 3)
    return NormLaunch(rows, block, 16, wide=False, resident=2 if block * itemsize <= 8192 else 1)


def backward_programs(chosen: NormLaunch, rows: int, parts: int, chip: Chip) -> int:
    """How many programs share the rows of each of the ``parts`` (groups × column blocks) of the parameters: what
    fills the chip once, and no more than there are tiles.

    Each program more is one more partial gradient to write.
    """
    fill = chip.multiprocessors * chosen.resident
    return max(1, min(cdiv(rows, chosen.rows), cdiv(fill, parts)))
