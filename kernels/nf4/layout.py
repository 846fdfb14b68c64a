"""Where the parts of an NF4 tensor lie in its one record of bytes.

    packed          two 4-bit indices a byte, the earlier in the high half
    absmax          a scale a block: float32, or with double quantization an 8-bit code
    nested_absmax   float32, one for every 256 codes        ┐
    nested_code     float32 (256,), what the codes mean     ├ with double quantization
    offset          float32 (1,), the mean of the scales    ┘

The parts hold the bytes that bitsandbytes keeps in as many tensors. Ours is one tensor of uint8 because then
nothing can come apart or be converted: a cast of a module to bfloat16, a mixed-precision policy or a broadcast
leaves uint8 alone, FSDP2 cuts and gathers it as any parameter, and a state dict holds it as it is.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..frame.launch import cdiv
from .reference import CODES, GROUP

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ALIGNMENT = 16  # bytes: the widest access of a thread, and more than a float32 needs


class LayoutArguments(NamedTuple):
    """A layout as operators take it."""

    shape: list[int]
    block_size: int
    double_quant: bool
    quant_type: str


NOT_PACKED = LayoutArguments([], 0, False, "")  # of a weight that is not in 4 bits


@dataclass(frozen=True)
class Layout:
    """What is needed besides the bytes to read them."""

    shape: tuple[int, ...]
    block_size: int = 64
    double_quant: bool = True
    quant_type: str = "nf4"

    def __post_init__(self):
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {self.block_size}")
        if self.quant_type not in CODES:
            raise ValueError(f"quant_type must be one of {', '.join(CODES)}, got {self.quant_type!r}")

    @staticmethod
    def of(shape: list[int], *rest) -> "Layout":
        """From what an operator was given; the same object for the same values, which costs a key the least."""
        return _layout(tuple(shape), *rest)

    @property
    def arguments(self) -> LayoutArguments:
        """As operators take it."""
        return LayoutArguments(list(self.shape), self.block_size, self.double_quant, self.quant_type)

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        return cdiv(self.numbers, self.block_size)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each part, in order."""
        scale_bytes = 1 if self.double_quant else 4
        sizes = {"packed": cdiv(self.numbers, 2), "absmax": scale_bytes * self.blocks}
        if self.double_quant:
            sizes |= {"nested_absmax": 4 * cdiv(self.blocks, GROUP), "nested_code": 4 * 256, "offset": 4}
        return sizes

    def start(self, part: str) -> int:
        """The byte at which a part begins; 0 for a part that this layout has not."""
        at = 0
        for name, size in self.sizes.items():
            if name == part:
                return at
            at += cdiv(size, ALIGNMENT) * ALIGNMENT
        return 0

    @property
    def nbytes(self) -> int:
        return sum(cdiv(size, ALIGNMENT) * ALIGNMENT for size in self.sizes.values())

    @cached_property
    def scale_starts(self) -> tuple[int, ...]:
        """Where a kernel finds the scales."""
        return tuple(self.start(part) for part in ("absmax", "nested_absmax", "nested_code", "offset"))


_layout = lru_cache(Layout)
