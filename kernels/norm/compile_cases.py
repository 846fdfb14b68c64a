"""What the compile check compiles of the norms."""

from collections.abc import Iterator

import torch

from ..compile_check import CompileCase
from ..frame.launch import Chip
from .launch import backward_launch, forward_launch
from .ops import NormBackwardCall, NormCall, NormKept, backward, forward


def compile_cases(chip: Chip) -> Iterator[CompileCase]:
    """Every launch choice with all options on, and rms_norm as models call it; float32 and odd widths, which
    take more registers, where rows are long."""
    seen = set()
    for exponent in range(6, 19):
        width = 2**exponent
        choice = (forward_launch(chip, width), backward_launch(chip, width, 2))
        if choice in seen:
            continue
        seen.add(choice)
        yield _case("rms_norm", width, torch.bfloat16)
        yield _case("layer_norm", width, torch.bfloat16)
        if width >= 2048:
            yield _case("layer_norm", width, torch.float32)
            yield _case("layer_norm", width - 1, torch.bfloat16)


def _case(op: str, width: int, dtype: torch.dtype) -> CompileCase:
    def forward_and_backward() -> None:
        x = torch.empty(64, width, dtype=dtype, device="meta")
        parameter = x[0]
        everything = op == "layer_norm"
        bias, residual = (parameter, x) if everything else (None, None)
        y, _, stats = forward(NormCall(x, parameter, bias, residual, 1e-6, 0.0, everything))
        kept = NormKept(x, parameter, bias, stats, 0.0, everything, dtype, None)
        backward(NormBackwardCall(y, residual, True, everything, kept))

    return CompileCase(op, f"{width} {str(dtype).removeprefix('torch.')}", forward_and_backward)
