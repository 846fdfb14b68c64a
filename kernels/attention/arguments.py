"""Tensors and options as the kernels take them."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..frame.launch import cdiv
from .launch import padded_width
from .reference import dropout_threshold
from .tiles import DEVICE, HOST, POINTERS


class Layout(NamedTuple):
    """Of a tensor (B, H, S, D), or of packed tokens (N, H, D) as one batch entry with N rows."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(shape, strides):
        """Of a tensor with this shape and these strides."""
        if len(shape) == 4:
            return Layout(shape, strides)
        rows, heads, width = shape
        return Layout((1, heads, rows, width), (0, strides[1], strides[0], strides[2]))


def addressable(x):
    """x, or a copy where the kernels cannot address it: rows of 16-byte units, not further apart than 32 bits
    reach within a tile."""
    batch, head, row, element = x.stride() if x.dim() == 4 else (0, *x.stride())
    if element == 1 and row < 2**23 and not ((batch | head | row) & 7 or x.data_ptr() & 15):  # nearly always
        return x
    strides = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    aligned = x.stride(-1) == 1 and all(s % 8 == 0 for s in strides if s != 1) and x.data_ptr() % 16 == 0
    return x if aligned and x.stride(-2) * 256 < 2**31 else x.clone(memory_format=torch.contiguous_format)


def empty_rows(x):
    """Uninitialized, with the shape and memory layout of x if that keeps D innermost, else contiguous."""
    like = torch.empty_like(x)
    return like if like.stride(-1) == 1 else x.new_empty(x.shape)


def matrices(**named):
    """Launch arguments for tensors (B, H, S, D) of these layouts: strides in units of eight elements."""
    arguments = {}
    for name, ((B, H, S, _), (batch, head, row, _)) in named.items():
        arguments[f"{name}_batch"] = batch // 8 if B > 1 else 0
        arguments[f"{name}_head"] = head // 8 if H > 1 else 0
        arguments[f"{name}_row"] = row // 8 if S > 1 else 0
    return arguments


def tile_count(rows, block, sequences):
    """Tiles of a head over all its rows; for packed ``sequences`` the upper bound that ``tiles.locate`` uses."""
    return cdiv(rows, block) if sequences is None else rows // block + sequences


def typical_keys(S, T, left, right):
    """How many keys the middle row sees: under a causal mask the mean of all rows."""
    position = S // 2 + T - S
    low = 0 if left is None else max(position - left, 0)
    high = T if right is None else min(position + right + 1, T)
    return max(high - low, 0)


def tile_arguments(tile, by_rows, by_keys, packed):
    """Launch arguments for a tile: its sizes, and strides of the tensors that it addresses, of which ``by_rows`` are
    taken BLOCK_M rows at a time and ``by_keys`` BLOCK_N; and for each that arrives as a tensor descriptor its shape,
    strides and block.

    Dense tensors arrive as tensor descriptors where tiles come by TMA: made here, each costs the kernel nothing, while
    a program that makes its own waits for each to reach memory. Packed sequences end where only the chip knows.
    """
    layouts = {**by_rows, **by_keys}
    head_dim = next(iter(layouts.values())).shape[3]
    width = padded_width(head_dim)
    how, described = POINTERS, {}
    if tile.tma:
        how = DEVICE if packed or not all(map(can_describe, layouts.values())) else HOST
    if how is HOST:
        for group, rows in ((by_rows, tile.block_m), (by_keys, tile.block_n)):
            described |= {name: (*shape_and_strides(layout), (1, 1, rows, width)) for name, layout in group.items()}
    arguments = {
        **matrices(**layouts),
        "D": head_dim,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": width,
        "TMA": how.value,
    }
    return arguments, described


def can_describe(layout):
    """Whether a tensor descriptor can address it: there is none for an expanded dimension or an empty tensor."""
    return all(size and (stride or size == 1) for size, stride in zip(*layout, strict=True))


def shape_and_strides(layout):
    """For a descriptor of (B, H, S, D); the stride of a dimension of one element, which may be anything, is D."""
    shape, strides = layout
    strides = [stride if size > 1 else shape[3] for size, stride in zip(shape, strides, strict=True)]
    return list(shape), [*strides[:3], 1]


def scalar_arguments(scale, left, right, softcap):
    """The logits in base 2 are ``scale · product``, or with a cap ``softcap · tanh(scale · product)``."""
    log2_e = math.log2(math.e)
    return {
        "scale": scale * log2_e if softcap is None else scale / softcap,
        "softcap": None if softcap is None else softcap * log2_e,
        "left": left,
        "right": right,
    }


def block_lists(mask):
    """(B or 1, H or 1, rows, 2, columns + 1) int32 of a mask of blocks (B or 1, H or 1, rows, columns): for each row of
    blocks the columns that it sees, in order and filled up with the number of columns, which stands for a block past
    the end; and how many of those it sees come before each column, and before the end."""
    columns = mask.shape[-1]
    column = torch.arange(columns, dtype=torch.int32, device=mask.device)
    seen = F.pad(torch.where(mask, column, columns).sort(-1).values, (0, 1), value=columns)
    return torch.stack([seen, F.pad(mask.cumsum(-1, dtype=torch.int32), (1, 0))], -2)


def mask_arguments(shape, block):
    """How blocks lie in a mask whose lists have this shape, (B or 1, H or 1, ...)."""
    if shape is None:
        return {"MASK_BLOCK": 0, "MASK_BY_ENTRY": False, "MASK_BY_HEAD": False}
    return {"MASK_BLOCK": block, "MASK_BY_ENTRY": shape[0] > 1, "MASK_BY_HEAD": shape[1] > 1}


def dropout_arguments(dropout_p):
    return {"threshold": dropout_threshold(dropout_p), "keep_scale": 1 / (1 - dropout_p)}


def size_arguments(q, k, sequences):
    """Sizes of layouts q (B, H, S, D) and k (B, K, T, D); ``batch`` counts the sequences of a packed batch."""
    B, H, S, _ = q.shape
    batch = B if sequences is None else sequences
    return {"rows_in_all": S, "batch": batch, "heads": H, "S": S, "T": k.shape[2], "GROUP": H // k.shape[1]}
