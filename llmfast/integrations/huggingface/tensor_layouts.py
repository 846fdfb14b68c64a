"""How tensors of families lie in memory where they do not lie as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """One layout: the way from a tensor of theirs to ours, and back."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous()


def _halves_of_pairs(tensor: Tensor) -> Tensor:
    """``gate, up, gate, up ...`` along the last dimension as ``[gate | up]``."""
    return tensor.unflatten(-1, (-1, 2)).mT.flatten(-2)


def _pairs_of_halves(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (2, -1)).mT.flatten(-2)


TRANSPOSED = Layout(_transposed, _transposed)
"""Matrices (in, out)."""
PAIRED = Layout(_halves_of_pairs, _pairs_of_halves)
"""Numbers of gate and up in turns."""
PAIRED_TRANSPOSED = Layout(
    lambda tensor: _transposed(_halves_of_pairs(tensor)), lambda tensor: _pairs_of_halves(_transposed(tensor))
)
"""Matrices (in, out), whose outputs are those of gate and up in turns."""
