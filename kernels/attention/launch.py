"""Launch choices of the attention kernels: tile sizes, warps and pipeline stages by chip, width and dtype.

What set them: every choice compiles for its chips without spilling registers and fits their shared memory (the
compile gate holds them to it), and among those that do, the largest tile, since a larger tile reads its operands
fewer times. One exception: float32 at D = 256 spills with every tile that was tried, and runs nevertheless. Where a
measurement on a chip decides otherwise, its comment says so, or a row of ``tables/attention.json`` (see ``tuned``).
"""

from dataclasses import dataclass

from ..tuned import tuned

WIDTHS = (16, 32, 64, 128, 256)  # Head widths are padded to the next of these.


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys. ``tma``: tiles arrive by tensor descriptor, which is TMA on 9.0 and 10.0; on
    8.x descriptors would lose the cp.async pipeline, and on 12.0, which multiplies from registers, they spill."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False


def padded_width(head_dim):
    return next(width for width in WIDTHS if width >= head_dim)


def heavy(softcap, dropout_p):
    """Whether tanh or random numbers take the registers that a larger tile would need."""
    return softcap is not None or dropout_p > 0


def is_datacentre(device):
    """9.0 and 10.x: 227 KB of shared memory, products of whole warp groups (wgmma, tcgen05), TMA."""
    return device.capability >= 90 and device.shared_memory >= 200 * 1024


@tuned("attention", Tile)
def forward_tile(device, head_dim, itemsize, heavy):
    width = padded_width(head_dim)
    if itemsize == 4:
        return Tile(32 if width <= 64 else 16, 32 if width <= 128 else 16, 4, 1)
    if is_datacentre(device):
        if width <= 64:
            return Tile(128, 32, 8, 3, tma=True) if heavy else Tile(128, 128, 8, 3, tma=True)
        if width == 128:
            return Tile(128, 32, 8, 2, tma=True) if heavy else Tile(128, 128, 8, 2, tma=True)
        return Tile(64, 32, 8, 2, tma=True) if heavy else Tile(128, 64, 8, 2, tma=True)
    if width <= 64:
        return Tile(128, 64, 8, 3)
    if width == 128:
        return Tile(128, 64, 8, 3 if device.shared_memory > 128 * 1024 else 2)
    return Tile(64, 32, 8, 2)


@tuned("attention", Tile)
def keys_gradient_tile(device, head_dim, itemsize, heavy):
    """dK and dV of a tile stand in registers, with two tiles of scores beside them."""
    width = padded_width(head_dim)
    if itemsize == 4:
        return Tile(32, 32, 8, 1) if width <= 64 else Tile(16, 16, 8, 1)
    if width == 256 and heavy:
        return Tile(16, 32, 8, 2)
    if is_datacentre(device):
        if device.capability >= 100:  # Accumulators stand in tensor memory and pass through registers.
            if heavy or width == 256:  # By mma.sync; with softcap, two stages spill.
                return Tile(32, 32, 8, 1 if heavy else 2)
            return Tile(64, 64, 8, 2 if width <= 64 else 1, tma=True)
        if width == 256:
            return Tile(16, 64, 8, 2, tma=True)
        return Tile(32 if heavy and width == 128 else 64, 64, 8, 2, tma=True)
    if width == 256 or (width == 128 and heavy):
        return Tile(32, 32, 8, 2)
    return Tile(32, 64, 8, 2)


@tuned("attention", Tile)
def queries_gradient_tile(device, head_dim, itemsize, heavy):
    width = padded_width(head_dim)
    if itemsize == 4:
        return Tile(32, 32, 8, 1) if width <= 64 else Tile(16, 16, 4, 1)
    if is_datacentre(device):
        if width == 256:
            return Tile(64, 32, 8 if device.capability == 90 else 4, 2, tma=True)
        return Tile(64, 32, 4, 2, tma=True) if heavy else Tile(128, 64, 8, 2, tma=True)
    return Tile(64, 64 if width <= 128 else 16, 8, 2)


def splits_keys(rows, keys):
    """Whether attention goes to the decoding kernels: its rows, the heads of a group together, are one tile, and
    keys enough to split. There are too few programs otherwise, and each head of a group would read the keys."""
    return 0 < rows <= 64 and keys >= 512


@tuned("attention", Tile)
def decode_tile(device, head_dim, itemsize, rows):
    """Rows are few, and reading the cache is all the time: small tiles, many of them in flight."""
    wide = padded_width(head_dim) * itemsize > 256
    block_m = min(max(16, 1 << (rows - 1).bit_length()), 32 if wide else 64)
    return Tile(block_m, 32 if wide else 64, 4, 2 if device.shared_memory < 128 * 1024 else 3)


def decode_splits(device, programs, rows):
    """Parts of the cache, so that two programs wait for memory on each multiprocessor; each has 256 rows or more,
    or combining would cost more than it gains. Rows are the cache's capacity: only the chip knows its filling."""
    return max(1, min(-(-2 * device.multiprocessors // programs), rows // 256, 128))
