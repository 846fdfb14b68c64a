"""Launch choices of the attention kernels: tile sizes, warps and pipeline stages by chip, width and dtype.

What set them: every choice compiles for its chips and fits their shared memory, spills nothing inside an inner loop,
and issues no matrix product twice (the compile check holds them to it). Among those that do, the largest tile, since a
larger tile reads its operands fewer times.

How warps come to repeat one another's products: Triton lays all warps of a kernel's chained products along one side,
the rows if the first product that it meets has as many rows as columns or more, else the columns. A warp covers 16
rows or 8 columns (a group of four warps 64 rows of wgmma); where the other product of the chain is smaller than that
times the warps, warps compute the same. At D = 256 the output's tile is wide, so warps lie along columns, and the tile
of scores needs 8 columns per warp.

Where a measurement on a chip decides otherwise, its comment says so, or a row of ``tables/attention.json`` (see
``tuned``).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..frame.launch import Chip, cdiv
from ..frame.plan import forget_plans
from ..frame.tuned import tuned

WIDTHS = (16, 32, 64, 128, 256)  # Head widths are padded to the next of these.
BLOCK_MULTIPLE = 128  # of the blocks of a mask; the rows and keys of a tile divide it


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys. ``tma``: tiles arrive by tensor descriptor, which is TMA on 9.0 and 10.0; on
    8.x descriptors would lose the cp.async pipeline, and on 12.0, which multiplies from registers, they spill.
    ``rotated``, of the forward pass: the product with the values of a tile of keys is issued after that with the keys
    of the next tile, so that it runs while their softmax is computed; for 9.0, where products are asynchronous."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    rotated: bool = False


# How the forward pass is launched: a program a tile; a persistent grid (see ``persistent_programs``); on 9.0, and only
# where chosen below, a persistent grid of warp groups (``forward_hopper``), which may take turns at the tensor cores.
TILES, PERSISTENT, WARP_GROUPS, ALTERNATING = "tiles", "persistent", "warp groups", "alternating warp groups"

_chosen: dict[str, Any] = {}


@contextlib.contextmanager
def choosing(**choices: Any) -> Iterator[None]:
    """Launches as given and not as chosen below, for measurements and tests: ``forward``, one of the four names above,
    and ``keys_gradient``, a ``Tile``. For the whole process: the backward pass runs in a thread of its own."""
    before = _chosen.copy()
    _chosen.update(choices)
    forget_plans()
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)
        forget_plans()


def chosen(name: str) -> Any:
    """What ``choosing`` gave, which goes before rules and measured tables; None outside of it."""
    return _chosen.get(name)


def padded_width(head_dim: int) -> int:
    return next(width for width in WIDTHS if width >= head_dim)


def heavy(softcap: float | None, dropout_p: float) -> bool:
    """Whether tanh or random numbers take the registers that a larger tile would need."""
    return softcap is not None or dropout_p > 0


def is_datacenter(chip: Chip) -> bool:
    """9.0 and 10.x: 227 KB of shared memory, products of whole warp groups (wgmma, tcgen05), TMA."""
    return chip.capability >= 90 and chip.shared_memory >= 200 * 1024


@tuned("attention", Tile)
@lru_cache
def forward_tile(chip: Chip, head_dim: int, itemsize: int, heavy: bool) -> Tile:
    width = padded_width(head_dim)
    if itemsize == 4:
        return Tile(32 if width <= 64 else 16, 32 if width <= 128 else 16, 4, 1)
    if is_datacenter(chip):
        # Where a step has four products of 256 columns, or random numbers, ptxas moves the softmax behind the wait
        # for the products, and rotating gains nothing.
        rotated = chip.capability == 90 and width <= 128 and not heavy
        if width <= 128:
            return Tile(128, 32 if heavy else 128, 8, 3 if width <= 64 else 2, tma=True, rotated=rotated)
        if heavy:
            return Tile(64, narrow_keys(chip), 4, 2, tma=True)
        return Tile(128, 64, 8, 2, tma=True)
    if width <= 64:
        return Tile(128, 64, 8, 3)
    if width == 128:
        return Tile(128, 64, 8, 3 if chip.shared_memory > 128 * 1024 else 2)
    return Tile(64, 64, 8, 1)


def narrow_keys(chip: Chip) -> int:
    """The keys of a tile of 64 rows, at D = 256 beside random numbers or tanh: with 32 and packed sequences, 9.0 spills
    in the loop."""
    return 16 if chip.capability == 90 else 32


# What starting a program takes, in steps over a tile of keys (2 µs at 128 × 128 on 9.0): until a multiprocessor has it
# and its first tiles arrive. A persistent grid saves it for all tiles but the first. Estimated, not yet measured.
START = 0.4


def forward_form(chip: Chip, head_dim: int, tile: Tile, tiles: int, heads: int, steps: float, pairs_up: bool) -> str:
    """TILES or PERSISTENT; ``pairs_up`` says whether tiles i and n - 1 - i of a head are equal work.

    WARP_GROUPS and ALTERNATING are never chosen here: they compile, and an emulation of them is exact, but no chip has
    run them yet. ``benchmarks/suites/attention.py`` measures them beside the others.
    """
    if form := chosen("forward"):
        return form
    # At D > 128 the output's tile, which is written while the next one begins, would not fit beside the others.
    pays = pairs_up and head_dim <= 128 and START / max(steps, 1) > idle(chip, tile, tiles, heads)
    return PERSISTENT if pays else TILES


def idle(chip: Chip, tile: Tile, tiles: int, heads: int) -> float:
    """What a persistent grid adds to the time: the idle part of the last round, in which pairs of tiles are dealt out.

    The hardware would hand single tiles to whoever is free, so persistence is for short sequences in many heads.
    Expected at D = 128, causal, 16,384 tokens in 16 heads on 132 multiprocessors (15.5 waves of tiles, 3 % idle): 17 %
    less time at S = 512, 8 % at 2,048; none at 16,384. ``heads`` counts them over the batch.
    """
    programs = persistent_programs(chip, tile.warps)
    pairs = cdiv(tiles, 2) * heads
    return cdiv(pairs, programs) * programs / pairs - 1 if pairs else 1


def persistent_programs(chip: Chip, warps: int) -> int:
    """As many as run at once: a multiprocessor has the registers of eight warps with up to 255 a thread."""
    return chip.multiprocessors * 8 // warps


@tuned("attention", Tile)
def keys_gradient_tile(chip: Chip, head_dim: int, itemsize: int, heavy: bool) -> Tile:
    """dK and dV of a tile stand in registers, with two tiles of scores beside them."""
    width = padded_width(head_dim)
    if itemsize == 4:  # At D = 128, 32 × 16 spills in the loop of most chips, and 64 × 16 in one stage in that of 10.0.
        if width <= 64:
            return Tile(32, 16, 4, 1)
        return Tile(64, 16, 8, 2 if chip.capability == 100 else 1) if width == 128 else Tile(16, 16, 8, 1)
    if width == 256:  # On 9.0 and 10.0 by mma.sync: the two accumulators of a wgmma of 64 keys are all registers.
        spills = chip.capability == 90 if heavy else chip.capability in (86, 89)  # with 32 keys, in the loop
        return Tile(32, 16 if spills else 32, 4, 2)
    if chip.capability >= 100 and is_datacenter(chip):  # Accumulators pass from tensor memory through registers.
        if heavy:  # By mma.sync; with softcap, two stages spill.
            return Tile(32, 32, 4, 1)
        return Tile(64, 64, 8, 2 if width <= 64 else 1, tma=True)
    if is_datacenter(chip):
        if heavy:
            return Tile(64 if width <= 64 else 32, 64, 4, 2, tma=True)
        return Tile(64, 128, 8, 2, tma=True)
    if width <= 64:
        return Tile(32, 128, 8, 2)
    return Tile(32, 32, 4, 2) if heavy else Tile(64, 64, 8, 1)


def for_packed(tile: Tile, chip: Chip, head_dim: int, packed: bool) -> Tile:
    """The tile of dK and dV. For packed sequences, whose addresses take registers, too, half as many keys on 9.0 where
    the dense tile would spill in the loop."""
    spills = packed and chip.capability == 90 and padded_width(head_dim) == 128 and tile.block_n == 128
    return replace(tile, block_n=64, warps=4) if spills else tile


def for_mask(tile: Tile, masked: bool) -> Tile:
    """A tile that lies in one block of a mask; one that was measured may be larger than those chosen here."""
    if not masked:
        return tile
    return replace(tile, block_m=min(tile.block_m, BLOCK_MULTIPLE), block_n=min(tile.block_n, BLOCK_MULTIPLE))


@tuned("attention", Tile)
def queries_gradient_tile(chip: Chip, head_dim: int, itemsize: int, heavy: bool) -> Tile:
    width = padded_width(head_dim)
    if itemsize == 4:
        return Tile(16, 32 if width <= 128 else 16, 4, 1)
    if is_datacenter(chip):
        if width == 256:
            if heavy:
                return Tile(64, narrow_keys(chip), 4, 2, tma=True)
            return Tile(64, 32, 4, 2, tma=True) if chip.capability > 90 else Tile(128, 32, 8, 2, tma=True)
        return Tile(64, 32, 4, 2, tma=True) if heavy else Tile(128, 64, 8, 2, tma=True)
    if width <= 64:
        return Tile(128, 64, 8, 2)
    if width == 128:
        return Tile(64, 64, 8, 2)
    return Tile(64 if chip.shared_memory > 128 * 1024 else 32, 64, 8, 1)


def splits_keys(queries: int, group: int, keys: int) -> bool:
    """Whether attention goes to the decoding kernels, which pack the heads of a group into one tile: those rows are
    few, or a forward tile of one head would be three quarters empty; and keys are enough to split. Forward would have
    too few programs, and each head of a group would read the keys."""
    return keys >= 512 and queries > 0 and (queries * group <= 64 or queries <= 32)


@tuned("attention", Tile)
def decode_tile(chip: Chip, head_dim: int, itemsize: int, rows: int) -> Tile:
    """Rows are few, and reading the cache is all the time: small tiles, many of them in flight."""
    wide = padded_width(head_dim) * itemsize > 256
    block_m = min(max(16, 1 << (rows - 1).bit_length()), 32 if wide else 64)
    return Tile(block_m, 32 if wide else 64, 4, 2 if chip.shared_memory < 128 * 1024 else 3)


def decode_splits(chip: Chip, programs: int, rows: int) -> int:
    """Parts of the cache, so that two programs wait for memory on each multiprocessor; each has 256 rows or more,
    or combining would cost more than it gains. Rows are the cache's capacity: only the chip knows its filling."""
    return max(1, min(cdiv(2 * chip.multiprocessors, programs), rows // 256, 128))
