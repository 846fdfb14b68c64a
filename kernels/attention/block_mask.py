"""Masks of blocks, and the lists that the kernels read of them."""

import torch
from torch import Tensor

from .arguments import block_lists
from .launch import BLOCK_MULTIPLE


class BlockMask:
    """A mask of blocks for ``flash_attention``, prepared once: its lists of blocks take about twenty small launches,
    which layers and steps with the same mask share.

    Args:
        mask: (B or 1, H or 1, blocks of queries, blocks of keys) bool, copied: False hides a block of keys from a block
            of queries.
        block_size: Queries and keys of a block, a multiple of 128.

    Raises:
        ValueError: for another dtype or number of dimensions, or another ``block_size``.

    >>> import torch
    >>> from llmfast.kernels import flash_attention
    >>> mask = BlockMask(torch.ones(4, 4, dtype=torch.bool).tril()[None, None])
    >>> q, k, v = (torch.randn(1, 2, 512, 64) for _ in range(3))
    >>> flash_attention(q, k, v, block_mask=mask).shape
    torch.Size([1, 2, 512, 64])
    """

    def __init__(self, mask: Tensor, block_size: int = 128):
        check_block_size(block_size)
        if mask.dtype != torch.bool or mask.dim() != 4:
            raise ValueError(
                "mask is bool of shape (B or 1, H or 1, blocks of queries, blocks of keys);"
                f" got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        self.mask, self.block_size = mask.clone(), block_size
        self.of_queries, self.of_keys = block_lists(self.mask), block_lists(self.mask.mT)

    def __repr__(self) -> str:
        return f"BlockMask({tuple(self.mask.shape)}, block_size={self.block_size}, device={self.mask.device})"


def check_block_size(block_size: int) -> None:
    """The tiles of the kernels divide it."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1 or block_size % BLOCK_MULTIPLE:
        raise ValueError(f"block_size is a positive multiple of {BLOCK_MULTIPLE}; got {block_size!r}")


def check_block_mask(block_mask: Tensor | BlockMask, block_size: int, q: Tensor, k: Tensor, packed: bool) -> int:
    """The size of its blocks, after they were found to fit q and k."""
    if packed:
        raise ValueError("block_mask is of padded sequences: leave out cu_seqlens_q, or the mask")
    check_block_size(block_size)
    if isinstance(block_mask, BlockMask):
        if block_size not in (BLOCK_MULTIPLE, block_mask.block_size):
            raise ValueError(f"block_size is {block_size}, but block_mask is a {block_mask}: leave block_size out")
        block_size = block_mask.block_size
    mask = tensor_of(block_mask)
    (B, H), blocks = q.shape[:2], [-(-x.shape[2] // block_size) for x in (q, k)]
    fits = mask.dim() == 4 and mask.shape[0] in (1, B) and mask.shape[1] in (1, H) and list(mask.shape[2:]) == blocks
    if mask.dtype != torch.bool or mask.device != q.device or not fits:
        raise ValueError(
            f"block_mask is bool of shape (1 or {B}, 1 or {H}, {blocks[0]}, {blocks[1]}) on {q.device};"
            f" got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}"
        )
    return block_size


def tensor_of(block_mask: Tensor | BlockMask | None) -> Tensor | None:
    return block_mask.mask if isinstance(block_mask, BlockMask) else block_mask


def lists_of(block_mask: Tensor | BlockMask | None, *inputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """``block_lists`` of each block of queries and, for the backward pass, of each block of keys."""
    if block_mask is None:
        return None, None
    if isinstance(block_mask, BlockMask):
        return block_mask.of_queries, block_mask.of_keys
    differentiates = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return block_lists(block_mask), block_lists(block_mask.mT) if differentiates else None
