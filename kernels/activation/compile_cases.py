"""What the compile check compiles of the activations."""

from collections.abc import Iterator

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from .api import APPROXIMATIONS
from .launch import LONG, launch
from .ops import (
    BiasedBackwardCall,
    BiasedCall,
    GatedBackwardCall,
    GatedCall,
    biased,
    biased_gradients,
    gated,
    gated_gradients,
)


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Every launch choice of swiglu; the other activations at the widest, with an odd width for each."""
    seen = set()
    for columns in (2**exponent for exponent in range(6, 14)):
        chosen = {launch(chip, f"gated_{pass_}", min(max(columns, 128), LONG)) for pass_ in ("forward", "backward")}
        if not chosen <= seen:
            seen |= chosen
            yield _gated_case("swiglu", "silu", columns, torch.bfloat16)
    for op, kind in (("swiglu", "silu"), *(("geglu", kind) for kind in APPROXIMATIONS.values())):
        yield _gated_case(op, kind, 4096, torch.float32)
        yield _gated_case(op, kind, 4095, torch.bfloat16)
    for kind in APPROXIMATIONS.values():
        for columns, dtype in ((4096, torch.bfloat16), (4096, torch.float32), (4095, torch.bfloat16)):
            yield _gelu_case(kind, columns, dtype)


def _gated_case(op: str, kind: str, columns: int, dtype: torch.dtype) -> CompileCase:
    def forward_and_backward() -> None:
        call = GatedCall(torch.empty(64, 2 * columns, dtype=dtype, device="meta"), None, kind)
        gated_gradients(GatedBackwardCall(gated(call), call))

    return CompileCase(op, f"{columns} {kind} {str(dtype).removeprefix('torch.')}", forward_and_backward)


def _gelu_case(kind: str, columns: int, dtype: torch.dtype) -> CompileCase:
    def forward_and_backward() -> None:
        x = torch.empty(64, columns, dtype=dtype, device="meta")
        call = BiasedCall(x, x[0], kind)
        biased_gradients(BiasedBackwardCall(biased(call), True, call))

    return CompileCase("gelu", f"{columns} {kind} {str(dtype).removeprefix('torch.')}", forward_and_backward)
