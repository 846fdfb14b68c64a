"""The definitions of the activations: computed in float32 (float64 for float64) and rounded once."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import cast
from ..frame.dtypes import widen as at_least_float32
from ..frame.invariance import is_batch_invariant

# Every activation by the name of its kind, under which ``kernels`` has it too.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def widen(x: Tensor) -> Tensor:
    """In batch-invariant mode float64: vectors and what is left behind the last of them differ in the last bit."""
    return x.double() if is_batch_invariant() else at_least_float32(x)


def split(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves (..., F) of ``[gate | up]`` (..., 2F), as views."""
    gate, up = packed.chunk(2, dim=-1)
    return gate, up


def gated(gate: Tensor, up: Tensor | None, kind: str) -> Tensor:
    """``activation(gate) · up``."""
    gate, up = split(gate) if up is None else (gate, up)
    return cast(ACTIVATIONS[kind](widen(gate)) * widen(up), gate.dtype)


def biased(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    """``activation(x + bias)``."""
    wide = widen(x)
    if bias is not None:
        wide = wide + cast(bias, wide.dtype)
    return cast(ACTIVATIONS[kind](wide), x.dtype)
