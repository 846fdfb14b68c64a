"""Tensors and options as the kernels take them."""

import math

import torch
import torch.nn.functional as F

from ..frame.descriptors import descriptor
from ..frame.launch import cdiv
from .launch import padded_width
from .reference import dropout_threshold
from .tiles import DEVICE, HOST, POINTERS


def as_heads(x):
    """(N, H, D) -> (1, H, N, D); four dimensions stay."""
    return x if x.dim() == 4 else x.transpose(0, 1)[None]


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
    """Launch arguments for tensors (B, H, S, D): the tensor, and its strides in units of eight elements."""
    arguments = dict(named)
    for name, x in named.items():
        (B, H, S, _), (batch, head, row, _) = x.shape, x.stride()
        arguments[f"{name}_batch"] = batch // 8 if B > 1 else 0
        arguments[f"{name}_head"] = head // 8 if H > 1 else 0
        arguments[f"{name}_row"] = row // 8 if S > 1 else 0
    return arguments


def tile_count(rows, block, cu_seqlens):
    """Tiles of a head over all its rows; for packed sequences the upper bound that ``tiles.locate`` uses."""
    return cdiv(rows, block) if cu_seqlens is None else rows // block + cu_seqlens.numel() - 1


def typical_keys(S, T, left, right):
    """How many keys the middle row sees: under a causal mask the mean of all rows."""
    position = S // 2 + T - S
    low = 0 if left is None else max(position - left, 0)
    high = T if right is None else min(position + right + 1, T)
    return max(high - low, 0)


def tile_arguments(tile, by_rows, by_keys, packed):
    """Launch arguments for a tile: its sizes, and the tensors that it addresses, of which ``by_rows`` are taken
    BLOCK_M rows at a time and ``by_keys`` BLOCK_N.

    Dense tensors arrive as tensor descriptors where tiles come by TMA: made here, each costs the kernel nothing, while
    a program that makes its own waits for each to reach memory. Packed sequences end where only the chip knows.
    """
    head_dim = next(iter(by_rows.values())).shape[3]
    width = padded_width(head_dim)
    tensors = {**by_rows, **by_keys}
    arguments = matrices(**tensors)
    how = POINTERS
    if tile.tma:
        how = DEVICE if packed or not all(map(can_describe, tensors.values())) else HOST
    if how is HOST:
        for group, rows in ((by_rows, tile.block_m), (by_keys, tile.block_n)):
            for name, x in group.items():
                arguments[name] = descriptor(x, *shape_and_strides(x), (1, 1, rows, width))
    return {
        **arguments,
        "D": head_dim,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": width,
        "TMA": how.value,
    }


def can_describe(x):
    """Whether a tensor descriptor can address x: it has none for an expanded dimension or an empty tensor."""
    return x.numel() > 0 and all(stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1)


def shape_and_strides(x):
    """For a descriptor of x (B, H, S, D); the stride of a dimension of one element, which may be anything, is D."""
    strides = [stride if size > 1 else x.shape[3] for size, stride in zip(x.shape, x.stride(), strict=True)]
    return list(x.shape), [*strides[:3], 1]


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


def mask_arguments(mask, block):
    """How blocks lie in a mask (B or 1, H or 1, rows, columns); the lists of it are the kernel's own argument."""
    if mask is None:
        return {"MASK_BLOCK": 0, "MASK_BY_ENTRY": False, "MASK_BY_HEAD": False}
    return {"MASK_BLOCK": block, "MASK_BY_ENTRY": mask.shape[0] > 1, "MASK_BY_HEAD": mask.shape[1] > 1}


def dropout_arguments(dropout_p):
    return {"threshold": dropout_threshold(dropout_p), "keep_scale": 1 / (1 - dropout_p)}


def size_arguments(q, k, cu_q):
    """Sizes of q (B, H, S, D) and k (B, K, T, D); ``batch`` counts the sequences of a packed batch."""
    B, H, S, _ = q.shape
    batch = B if cu_q is None else cu_q.numel() - 1
    return {"rows_in_all": S, "batch": batch, "heads": H, "S": S, "T": k.shape[2], "GROUP": H // k.shape[1]}
