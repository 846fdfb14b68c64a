"""Gated and plain activations of the feed-forward layer."""

import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import cast, widen


def split(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves (..., F) of ``[gate | up]`` (..., 2F), as views."""
    gate, up = packed.chunk(2, dim=-1)
    return gate, up


def swiglu(gate: Tensor, up: Tensor | None) -> Tensor:
    gate, up = split(gate) if up is None else (gate, up)
    return cast(F.silu(widen(gate)) * widen(up), gate.dtype)


def geglu(gate: Tensor, up: Tensor | None, approximate: str) -> Tensor:
    gate, up = split(gate) if up is None else (gate, up)
    return cast(F.gelu(widen(gate), approximate=approximate) * widen(up), gate.dtype)


def gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    wide = widen(x)
    if bias is not None:
        wide = wide + cast(bias, wide.dtype)
    return cast(F.gelu(wide, approximate=approximate), x.dtype)
