"""Launch choices of the attention kernels: tile sizes, warps and pipeline stages by chip, width and dtype.

The chips fall in three classes by the shared memory of one block: 99 KB (compute capability 8.6, 8.9, 12.0), 163 KB
(8.0) and 227 KB (9.0, 10.0). Every choice below compiles on its chips without spills and fits; the compile gate
holds them to it.
"""

from dataclasses import dataclass, replace

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # Those whose choices the compile gate proves.
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


def known_capability(device):
    """The capability whose choices serve this chip: the newest that is not newer, and that asks for no more shared
    memory than the chip has (8.7 has 163 KB like 8.0; 10.3 and 11.0 are like 10.0; 12.1 like 12.0)."""
    return max(c for c in CAPABILITIES if c <= device.capability)


def forward_tile(device, head_dim, itemsize):
    chip = known_capability(device)
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


def keys_gradient_tile(device, head_dim, itemsize):
    chip = known_capability(device)
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


def queries_gradient_tile(device, head_dim, itemsize):
    tile = keys_gradient_tile(device, head_dim, itemsize)
    return replace(tile, block_m=tile.block_n, block_n=tile.block_m)


def decode_tile(device, head_dim, itemsize, rows):
    """Rows are few, and reading the cache is all the time: small tiles, many of them in flight."""
    wide = padded_width(head_dim) * itemsize > 256
    block_m = min(max(16, 1 << (rows - 1).bit_length()), 64 if not wide else 32)
    return Tile(block_m, 32 if wide else 64, 4, 2 if device.shared_memory < 128 * 1024 else 3)


def decode_splits(device, programs, rows):
    """Parts of the cache, so that two programs wait for memory on each multiprocessor; each has 256 rows or more, or
    combining would cost more than it gains. Rows are the cache's capacity: its filling is known on the chip alone."""
    return max(1, min(-(-2 * device.multiprocessors // programs), rows // 256, 128))
