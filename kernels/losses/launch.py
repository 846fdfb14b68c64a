"""Launch choices of the losses, and by which way the losses of linear layers go."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..frame.launch import Chip, cdiv, next_power_of_2
from ..frame.torch_private import constant_while_traced
from ..frame.tuned import tuned

MIB = 2**20

# ---------------------------------------------------------------------------------------------- cross_entropy

TILE = 2048  # elements a program takes at least, so that short rows share one
BLOCK = 4096  # columns a step: two 16-byte reads a thread in flight, in at most 64 registers
WARPS = 8


@dataclass(frozen=True)
class CrossEntropyLaunch:
    """One program takes ``rows`` rows at a time, ``block`` columns at a time."""

    rows: int
    block: int
    warps: int = WARPS


@tuned("cross_entropy", CrossEntropyLaunch)
@lru_cache
def cross_entropy_forward_launch(chip: Chip, vocabulary: int) -> CrossEntropyLaunch:
    block = min(max(next_power_of_2(vocabulary), 64), BLOCK)
    rows = max(1, TILE // block)
    return CrossEntropyLaunch(rows, block)


@tuned("cross_entropy", CrossEntropyLaunch)
@lru_cache
def cross_entropy_backward_launch(chip: Chip, vocabulary: int) -> CrossEntropyLaunch:
    return cross_entropy_forward_launch.rule(chip, vocabulary)


@lru_cache
def soft_cross_entropy_launch(chip: Chip, vocabulary: int) -> CrossEntropyLaunch:
    """Half the columns a step: the targets are read beside the logits, and three sums stand in registers."""
    block = min(max(next_power_of_2(vocabulary), 64), BLOCK // 2)
    return CrossEntropyLaunch(max(1, TILE // block), block)


def unit_of(logits: Tensor) -> int:
    """How many elements the kernels access as one: those of 16 bytes, where rows do not start on 16 bytes but the
    tensor does; 1 where nothing need be done, or can."""
    unit = 16 // logits.element_size()
    return 1 if logits.shape[-1] % unit == 0 or logits.data_ptr() % 16 else unit


# --------------------------------------------------------------------------------------- linear_cross_entropy

# Logits that the reference path computes in one piece, with operations that have second derivatives: chunks cost a
# CPU 0.2 ms a call more, and from here on that is a tenth of it and less (benchmarks/log/kernels-losses.md).
FEW_LOGITS = MIB
FEW_ON_GPU = 64 * MIB  # about what an L2 cache holds: there logits cost little, and a fourth product more

DATACENTER_BLACKWELL = (100, 103)


METHODS = ("auto", "chunks", "tiles")


def tiles_fit(width: int, dtype: torch.dtype) -> bool:
    """Whether there are tiles: they multiply in 16 bits, and take a width in whole steps of 64."""
    return dtype.itemsize == 2 and width % 64 == 0


def strategy(
    tokens: int,
    vocabulary: int,
    width: int,
    dtype: torch.dtype,
    capability: int | None,
    per_token: bool,
    method: str = "auto",
) -> str:
    """``"plain"``, ``"chunks"`` or ``"tiles"``; without kernels (``capability`` None) ``"reference"`` chunks.

    Where the loss of all tokens is one number, its gradient is known while the logits are, and chunks compute three
    products, by the BLAS library: 3/4 of what tiles take at the same speed, and Triton's products are slower.

    Where each token's loss is asked for (``per_token``), or gradients are filtered, both compute four. Tiles then write
    no logits (chunks move 10 bytes a logit, which at E = 1024 takes an H100 as long as a product), and wait for no
    count of tokens. Tiles also save memory: they need no float32 copy of the weight's gradient. On capability 10.0,
    where Triton's published products are far from the peak, they are only taken when asked for.
    """
    if method == "auto" and tokens * vocabulary * dtype.itemsize <= (FEW_LOGITS if capability is None else FEW_ON_GPU):
        return "plain"
    if capability is None:
        return "reference"
    if method != "auto":
        return method
    by_tiles = per_token and tiles_fit(width, dtype) and capability not in DATACENTER_BLACKWELL
    return "tiles" if by_tiles else "chunks"


@constant_while_traced
def capability_of(device_type: str, index: int | None) -> int:
    return Chip.of(torch.device(device_type, index)).capability


GROUP = 8  # rows of tiles that go through the columns together


@dataclass(frozen=True)
class TileLaunch:
    """A program computes ``rows`` × ``columns`` of a product, ``depth`` of the summed dimension a step. ``tma``: its
    operands arrive by tensor descriptor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    tma: bool = False

    def options(self) -> dict:
        """As the kernels take it."""
        tile = {"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth, "GROUP": GROUP}
        return {**tile, "num_warps": self.warps, "num_stages": self.stages}


SQUARE = TileLaunch(128, 128, 64, warps=8, stages=3)
WIDE = TileLaunch(128, 256, 64, warps=8, stages=3)
WIDE_BY_TMA = TileLaunch(128, 256, 64, warps=8, stages=3, tma=True)


@tuned("linear_cross_entropy", TileLaunch)
def logits_launch(chip: Chip, heavy: bool) -> TileLaunch:
    """The tile of the logits; ``heavy``: a bias, weights of the classes, a softcap or label smoothing take
    registers beside them.

    On 9.0 a wide one, which does 85 operations for each byte from L2 in place of 64. Its addresses would take the
    registers that the exponentials need: descriptors have none (254 registers, no spill). Three stages of the square
    one take 96 KiB, which every chip has; a wide one spills where operands pass through registers, and everywhere with
    one of these options. So does half the warps.
    """
    return WIDE_BY_TMA if chip.capability == 90 and not heavy else SQUARE


@tuned("linear_cross_entropy", TileLaunch)
def hidden_launch(chip: Chip) -> TileLaunch:
    """The tile of the gradient of ``hidden``. Reading and writing its sums, a wide one spills on every chip."""
    return SQUARE


@tuned("linear_cross_entropy", TileLaunch)
def weight_launch(chip: Chip) -> TileLaunch:
    """The tile of the gradient of ``weight``: wide (144 KiB) where ``wgmma`` reads its operands from shared
    memory; with ``mma`` they pass through registers, and it spills."""
    return WIDE if chip.capability == 90 else SQUARE


def splits_of(tokens: int, vocabulary: int, tile: TileLaunch, chip: Chip) -> int:
    """In how many parts the vocabulary is cut in the forward pass: sixteen programs a multiprocessor, so that
    the last round, partly idle, is a sixteenth of the work; at most 128 partial results of a token."""
    wanted = cdiv(16 * chip.multiprocessors, cdiv(tokens, tile.rows))
    return max(1, min(wanted, 128, cdiv(vocabulary, tile.columns)))


def chunk_columns(tokens: int, vocabulary: int, width: int, itemsize: int, tile: TileLaunch) -> int:
    """How many classes share a chunk of the backward pass.

    Each chunk reads and writes the float32 sums of the gradient of ``hidden``, 8·N·E bytes, against the
    6·N·C·E operations it does: 4096 columns make 3000 operations a byte, ten times what a chip does in that
    time. The workspace is 256 MiB, or a quarter of the hidden states and the weight where that is more.
    """
    workspace = max(256 * MIB, (tokens + vocabulary) * width * itemsize // 4)
    columns = workspace // (tokens * itemsize)
    return min(max(1, columns // tile.columns), cdiv(vocabulary, tile.columns)) * tile.columns


# --------------------------------------------------------------------------------------- linear_kl_divergence

KL_BLOCK = 2048  # columns a step: of two models, so half of what ``cross_entropy`` takes; js spills with more
KL_WARPS = 8


def kl_block(vocabulary: int) -> int:
    return min(max(next_power_of_2(vocabulary), 256), KL_BLOCK)
