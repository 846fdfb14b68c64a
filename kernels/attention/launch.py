"""Launch choices of the attention kernels: tile sizes, warps and pipeline stages by chip, width and dtype.

The chips fall in three classes by the shared memory of one block: 99 KB (compute capability 8.6, 8.9, 12.0), 163 KB
(8.0) and 227 KB (9.0, 10.0). Every choice below compiles on its chips without spills and fits; the compile gate
holds them to it.
"""

from dataclasses import dataclass, replace

KILOBYTE = 1024
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
WIDTHS = (16, 32, 64, 128, 256)  # Head widths are padded to the next of these.


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys. ``tma``: the walked-over side arrives by tensor descriptor, which is TMA on
    9.0, 10.0 and 12.0; on older chips descriptors would lose the cp.async pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False


def padded_width(head_dim):
    return next(width for width in WIDTHS if width >= head_dim)


def chip_class(capability):
    """Known capability whose choices serve this one: its own, or the nearest older one of a chip like it."""
    known = [c for c in SHARED_MEMORY if c <= capability]
    return max(known)


def forward_tile(capability, head_dim, itemsize):
    chip = chip_class(capability)
    width = padded_width(head_dim)
    tma = chip >= 90
    if itemsize == 4:
        return Tile(64, 32, 4, 2, tma)
    if chip in (90, 100):
        # wgmma and tcgen05 take 64 rows a warp group and want both operands of P V in flight.
        if width <= 64:
            return Tile(128, 128, 4 if chip == 100 else 8, 3, tma)
        if width == 128:
            return Tile(128, 128, 8, 2, tma)
        return Tile(128, 64, 8, 2, tma)
    if width <= 64:
        return Tile(128, 64, 4, 3, tma)
    if width == 128:
        return Tile(128, 64 if chip == 80 else 32, 8 if chip == 80 else 4, 3, tma)
    return Tile(128 if chip == 80 else 64, 32, 8 if chip == 80 else 4, 2, tma)


def keys_gradient_tile(capability, head_dim, itemsize):
    chip = chip_class(capability)
    width = padded_width(head_dim)
    tma = chip >= 90
    if itemsize == 4:
        return Tile(32, 32, 4, 1, tma)
    if chip in (90, 100):
        if width <= 64:
            return Tile(64, 128, 8, 3, tma)
        if width == 128:
            return Tile(64, 128, 8, 2, tma)
        return Tile(32, 64, 8, 2, tma)
    if width <= 64:
        return Tile(64, 64, 4, 2, tma)
    if width == 128:
        return Tile(32 if chip != 80 else 64, 64, 4 if chip != 80 else 8, 2, tma)
    return Tile(32, 32, 4, 2, tma)


def queries_gradient_tile(capability, head_dim, itemsize):
    tile = keys_gradient_tile(capability, head_dim, itemsize)
    return replace(tile, block_m=tile.block_n, block_n=tile.block_m)
