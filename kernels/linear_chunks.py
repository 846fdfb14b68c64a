"""``linear_cross_entropy`` by chunks of tokens: the logits of one chunk at a time, through the BLAS library.

A chunk's logits are ``h @ Wᵀ + b``. From their gradient D, dh = D @ W, and dW = Σ over chunks of Dᵀ @ h, which is
accumulated in float32 whatever the dtypes are. Where the loss of all tokens is one number, its gradient is
known while its logits are, so three matrix products do; where each token's is asked for, the logits are
computed a second time in the backward pass.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .reference.dtypes import widen

MIB = 2**20


class Options(NamedTuple):
    """The options of the loss, in the order in which the operators take them."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


def chunk_rows(vocabulary: int, width: int, itemsize: int, on_cpu: bool) -> int:
    """How many tokens share a chunk.

    Each chunk reads and writes the float32 gradient of the weight once, 8·V·E bytes, against its 6·rows·V·E
    operations. On a CPU 256 rows make that a twentieth of the time. A GPU does some 300 operations while it
    moves one byte, and needs 2048 rows for the same: half the weight's size in logits, where that is much.
    """
    if on_cpu:
        return max(256, 64 * MIB // (vocabulary * itemsize))
    workspace = max(256 * MIB, vocabulary * width * itemsize // 2)
    return max(128, workspace // (vocabulary * itemsize) // 128 * 128)


def chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    rows = chunk_rows(*weight.shape, weight.itemsize, on_cpu=hidden.device.type == "cpu")
    return (slice(start, start + rows) for start in range(0, hidden.shape[0], rows))


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` in ``total``'s memory, summed and kept in float32 (float64 for float64)."""
    if total is None:
        total = torch.zeros(a.shape[0], b.shape[1], dtype=widen(a[:0]).dtype, device=a.device)
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if a.is_cuda:
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))
