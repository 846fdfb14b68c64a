"""Gated and plain activations of the feed-forward layer."""

import torch.nn.functional as F
from torch import Tensor

from .dtypes import cast, widen


def split(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves (..., F) of ``[gate | up]`` (..., 2F), as views."""
    gate, up = packed.chunk(2, dim=-1)
    return gate, up


def _widened(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    return split(widen(gate)) if up is None else (widen(gate), widen(up))


def swiglu(gate: Tensor, up: Tensor | None) -> Tensor:
    wide, up = _widened(gate, up)
    return cast(F.silu(wide) * up, gate.dtype)


def geglu(gate: Tensor, up: Tensor | None, approximate: str) -> Tensor:
    wide, up = _widened(gate, up)
    return cast(F.gelu(wide, approximate=approximate) * up, gate.dtype)


def gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    wide = widen(x)
    if bias is not None:
        wide = wide + cast(bias, wide.dtype)
    return cast(F.gelu(wide, approximate=approximate), x.dtype)
