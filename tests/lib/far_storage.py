"""Tensors that reach past 2³¹ elements in storage of which only the touched pages exist."""

import mmap

import torch
from torch import Tensor

FAR = 2**31
ROW = 2**23 - 8  # The largest row stride that the attention kernels address without a copy.
SLOT = 2**16


def sparse(count: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """``count`` uninitialised elements; on a CPU no memory is set aside for them."""
    if device != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)


class FarStorage:
    """Hands out tensors (B, H, S, D) whose last batch, head or row begins past 2³¹ elements after the first, all of
    them side by side in one storage."""

    def __init__(self, place: str, dtype: torch.dtype, device: str):
        self.place, self.slots = place, 0
        self.storage = sparse(FAR + FAR // 2, dtype, device)

    def empty(self, shape: tuple[int, int, int, int]) -> Tensor:
        B, H, S, D = shape
        strides = {
            "batch": (-(-FAR // max(B - 1, 1)) // 8 * 8 + 8, S * D, D, 1),
            "head": (S * D, -(-FAR // max(H - 1, 1)) // 8 * 8 + 8, D, 1),
            "row": (H * D, D, ROW, 1),
        }[self.place]
        offset, self.slots = self.slots * SLOT, self.slots + 1
        return self.storage.as_strided(shape, strides, offset)

    def copy(self, x: Tensor) -> Tensor:
        return self.empty(x.shape).copy_(x)
